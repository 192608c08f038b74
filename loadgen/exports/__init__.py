"""A run in the formats of other tools, and as a table. Pure, except for the writing."""

FORMATS = ("vllm-bench", "guidellm")
"""The formats of ``--export``."""
FILES = {name: f"{name}.json" for name in FORMATS}
"""The file of each format in the folder of a run."""
