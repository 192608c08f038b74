"""The dry run: ``tokenpool-inject < pod.yaml`` prints a manifest as the webhook would change it.

It changes pods and all objects with pod templates, of any kind (``templates``). Other documents pass
unchanged. The items of a List become separate documents.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from injector import settings
from injector.decisions import Denial
from injector.inject import inject
from injector.patch import apply
from injector.shape import PodMalformed, title
from injector.templates import completed_elsewhere, templates
from runtime.build import add_version
from runtime.options import SettingsError

REFUSED = 1
USAGE_ERROR = 2


@dataclass(frozen=True, slots=True)
class Result:
    """One document after injection."""

    document: Any
    warnings: tuple[str, ...] = ()
    denials: tuple[str, ...] = ()
    """The reasons why the webhook would deny its pods, each with the place of the template."""


def main(argv: Sequence[str] | None = None) -> int:
    """Read manifests from standard input, print them patched; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="tokenpool-inject",
        description="Prints the manifests on standard input as the injector would change them.",
    )
    add_version(parser)
    parser.add_argument("--every-pod", action="store_true", help="inject pods without the label, too")
    settings.add_template_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        template = settings.read_template(arguments, os.environ)
        documents = [*_flat(yaml.safe_load_all(sys.stdin))]
        made = [injected(document, template, every=arguments.every_pod) for document in documents]
    except (SettingsError, PodMalformed, UnicodeError, yaml.YAMLError) as error:
        _say(str(error))
        return USAGE_ERROR
    for each in made:
        for warning in each.warnings:
            _say(f"warning: {warning}")
    for denial in (denial for each in made for denial in each.denials):
        _say(f"denied: {denial}")
    if any(each.denials for each in made):
        return REFUSED
    if [each.document for each in made] == documents:
        _say(f'nothing to do: no pod without a sidecar has the label {template.label}: "true"')
    print(yaml.safe_dump_all((each.document for each in made), sort_keys=False), end="")
    return 0


def _say(text: str) -> None:
    print(f"tokenpool-inject: {text}", file=sys.stderr)


def _flat(documents: Iterable[Any]) -> Iterator[Any]:
    for document in documents:
        if isinstance(document, dict) and document.get("kind") == "List":
            yield from _flat(document.get("items") or [])
        else:
            yield document


def injected(document: Any, template: settings.Template, *, every: bool) -> Result:
    """A document with all its pod templates injected. Raises ``PodMalformed``."""
    made = document
    warnings: list[str] = []
    denials: list[str] = []
    for pod, place in templates(document):
        where = title(document) + (f" {place}" if place not in ("", "/spec/template") else "")
        decision = inject(pod, template, every=every)
        if isinstance(decision, Denial):
            denials.append(f"{where}: {decision.message}")
            continue
        warnings += decision.warnings
        made = apply(made, [{**each, "path": place + each["path"]} for each in decision.patch])
    if every or _has_label(document, template.label):
        warnings += [
            f"{title(document)} {path}: a controller completes this pod spec; give tokenpool-inject the pod"
            " that the controller makes"
            for path in completed_elsewhere(document)
        ]
    return Result(made, tuple(warnings), tuple(denials))


def _has_label(value: Any, label: str) -> bool:
    """Whether the label is anywhere in a document."""
    if isinstance(value, list):
        return any(_has_label(each, label) for each in value)
    if not isinstance(value, dict):
        return False
    return value.get(label) == "true" or any(_has_label(each, label) for each in value.values())


if __name__ == "__main__":
    sys.exit(main())
