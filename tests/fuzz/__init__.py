"""Inputs that no client would write: random ones, mutations of a corpus, and requests to the real port."""
