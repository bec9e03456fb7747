"""Inputs that nobody would write: made up at random, from a corpus, and against the real port."""
