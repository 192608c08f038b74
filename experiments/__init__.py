"""The experiments: a guarantee in overload and fairness in scarcity, with tokenpool and with baselines.

Every system runs the same scenario with load from ``loadgen``, on a real vLLM on the CPU or on the engine
simulator. The product does not import this package.
"""
