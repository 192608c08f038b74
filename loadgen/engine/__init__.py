"""The engine simulator: behaves like one vLLM server, without a model. ``python -m loadgen.engine --help``.

``scheduler``, ``sequence``, ``cache``, ``model``, ``tokens``, ``requests``, ``counters`` and ``metrics`` are
pure: time and randomness are their arguments. ``runner`` gives them a clock, and ``server`` speaks HTTP.
``calibrate`` measures a real engine, and finds the simulator's settings for it. Facts about vLLM are those
observed on version 0.32.0.
"""
