"""Monitoring: the one source of Prometheus rules, alerts and Grafana dashboards.

``python -m monitoring.generate`` writes them for compose (``docker/``) and for Kubernetes (``k8s/``).
"""
