"""The limits of every entitlement, and the number of replicas, from one tick's reports."""
