"""Admission: the admission rules, the admission queue, and preemption."""
