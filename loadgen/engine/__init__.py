"""The engine simulator: behaves like one vLLM server, without a model. ``python -m loadgen.engine --help``.

``runner`` runs schedulers in real time, ``cores`` combines several, ``server`` serves HTTP, ``injection``
carries faults out, ``process`` starts and restarts the engine, and ``admin`` takes orders. All other modules
are pure: time and randomness are their arguments. ``calibrate`` measures a real engine, and finds the
simulator's settings for it. Statements about vLLM were observed with version 0.32.0, or read in its source.
"""
