"""Quotas: budgets of tokens over calendar windows, enforced by portions that sidecars lease from a store."""
