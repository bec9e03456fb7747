"""Measures candidates and brings the choice into service: the shell around what tuning/ decides."""
