"""Benchmarks: ratios of tokenpool to its peers in the same run. The product does not import them."""
