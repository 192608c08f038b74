"""Tests against a real vLLM."""
