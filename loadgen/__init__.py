"""loadgen: load for a pool, and an engine for machines without one. It sees the system as users do."""
