"""Finds the pool configuration that serves best under an objective, by measuring."""
