"""OpenTelemetry spans of requests, and which requests get them."""
