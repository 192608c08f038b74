"""Tools that the demo, the tests, the benchmarks, the experiments and the simulation share.

Free ports, child processes, a Redis server, a stub engine, measures of fairness, and the tenants of a
contended pool. The product does not import them. They import only the load generator's statistics.
"""
