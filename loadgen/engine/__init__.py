"""The engine simulator: behaves like one vLLM server, without a model. ``python -m loadgen.engine --help``.

``scheduler``, ``sequence``, ``cache``, ``model``, ``tokens``, ``requests``, ``counters`` and ``metrics`` are
pure: time and randomness are their arguments. ``runner`` runs them in real time, and ``server`` serves HTTP.
``calibrate`` measures a real engine, and finds the simulator's settings for it. Statements about vLLM were
observed with version 0.32.0.
"""
