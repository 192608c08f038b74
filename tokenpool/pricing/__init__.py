"""Pricing: the cost of a request, from estimates, learned costs and configured prices."""
