"""Tests of the sidecar, against a scripted engine."""
