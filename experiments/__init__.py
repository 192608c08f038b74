"""The experiments: a guarantee in overload and fairness in scarcity, with tokenpool and with baselines.

Every system runs the same scenario, driven by ``loadgen`` as a user would; real vLLM on the CPU, or the
engine simulator. Nothing here is imported by what is measured.
"""
