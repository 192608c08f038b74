"""The lease protocol on a virtual clock, with faults of the network, the sidecars and the lease store.

The simulation runs the shipped domain: accounts, admission, leases, lease store, planner and driver. Only the
network, the engines and the clients are simulated. ``make sim`` runs large pools; the tests run small ones
with many seeds.
"""
