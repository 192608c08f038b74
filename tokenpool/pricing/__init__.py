"""What a request costs: estimates, learned costs, prices."""
