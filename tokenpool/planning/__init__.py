"""Planning: it computes all limits and the number of replicas from the reports of one tick."""
