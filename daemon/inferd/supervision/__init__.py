"""Watches model versions and devices: sends probes, reloads versions, restarts the process."""
