"""Loads a server of the Open Inference Protocol and measures it: ``inferd bench``."""
