"""Exhaustive exploration of small worlds: every reachable state of the shipped lease protocol.

``search`` visits the states, ``values`` turns live objects into values and back, ``lease_world`` and
``election_world`` are the worlds, ``worlds`` lists them, and ``command`` prints the counts.
"""
