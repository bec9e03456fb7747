"""Measures candidates and puts the winner into service: the shell around the decisions of tuning/."""
