"""Real processes together: sidecars, coordinators, a real Redis, engines."""
