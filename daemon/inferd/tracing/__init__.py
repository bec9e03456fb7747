"""Spans of requests for OpenTelemetry, and which requests get them."""
