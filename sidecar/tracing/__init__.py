"""Traces of requests: what the request path reports, and its export by OpenTelemetry."""
