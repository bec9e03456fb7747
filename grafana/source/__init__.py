"""Dashboards and rules as code; `make generate` writes what Grafana and Prometheus read."""
