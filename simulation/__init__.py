"""The protocol between sidecars and books on a virtual clock, with everything that can go wrong.

What runs here is the domain itself: accounts, admission, leases, books, planner. Only the network, the
engines and the tenants are made up. ``make sim`` runs it large; the tests run it small, with many seeds.
"""
