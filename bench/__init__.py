"""Benchmarks: the proxy beside its peers, as ratios in one run. Nothing of the product imports this."""
