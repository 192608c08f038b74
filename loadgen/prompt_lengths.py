"""Compares the prompt tokens that servers report with those that were asked for. Pure."""

from __future__ import annotations

from loadgen.records import Run


def findings(run: Run) -> list[str]:
    """A sentence, if reported prompt tokens differ from those asked for; empty if all are equal.

    Attempts without a reported number do not count.
    """
    told = [(a.input_tokens, a.prompt_tokens) for a in run.attempts if a.prompt_tokens]
    wrong = [reported - asked for asked, reported in told if reported != asked]
    if not wrong:
        return []
    asked, reported = (sum(column) for column in zip(*told, strict=True))
    fix = "" if run.meta.scenario.get("tokenizer") else " Write 'tokenizer: engine' for exact lengths."
    return [
        f"{len(wrong)} of {len(told)} prompts ({len(wrong) / len(told):.1%}) had other lengths than "
        f"requested: {min(wrong):+d} to {max(wrong):+d} tokens, {reported / asked - 1:+.2%} in all.{fix}"
    ]
