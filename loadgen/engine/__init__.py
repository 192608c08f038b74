"""The engine simulator: behaves like one vLLM server, without a model. ``python -m loadgen.engine --help``.

``scheduler``, ``cache``, ``model``, ``tokens``, ``requests`` and ``metrics`` are pure: time and chance are
their arguments. ``runner`` gives them a clock, ``server`` speaks HTTP, ``calibrate`` measures a real engine
so that the simulator can be made like it. Facts about vLLM are those observed on version 0.32.0.
"""
