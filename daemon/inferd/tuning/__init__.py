"""Finds the configuration of a pool that serves best under an objective, by measuring."""
