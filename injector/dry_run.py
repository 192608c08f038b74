"""The dry run: ``tokenpool-inject < pod.yaml`` prints a manifest as the webhook would change it.

It changes pods and all objects with a pod template (Deployments, StatefulSets, Jobs, ...). Other documents
pass unchanged. The items of a List become separate documents.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

from injector import settings
from injector.inject import Denial, inject
from injector.patch import apply
from injector.shape import Json, PodMalformed, title
from runtime.build import add_version
from runtime.options import SettingsError

REFUSED = 1
USAGE_ERROR = 2


class Refused(ValueError):
    """The webhook would deny the pod; the text gives the reason."""


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
        made = [*injected(documents, template, every=arguments.every_pod)]
    except (SettingsError, PodMalformed, UnicodeError, yaml.YAMLError) as error:
        print(f"tokenpool-inject: {error}", file=sys.stderr)
        return USAGE_ERROR
    except Refused as error:
        print(f"tokenpool-inject: denied: {error}", file=sys.stderr)
        return REFUSED
    for warning in (warning for _, warnings in made for warning in warnings):
        print(f"tokenpool-inject: warning: {warning}", file=sys.stderr)
    if [document for document, _ in made] == documents:
        print(f"tokenpool-inject: nothing to do: {_nothing(template)}", file=sys.stderr)
    print(yaml.safe_dump_all((document for document, _ in made), sort_keys=False), end="")
    return 0


def _nothing(template: settings.Template) -> str:
    return f'no pod without a sidecar has the label {template.label}: "true"'


def _flat(documents: Iterable[Any]) -> Iterator[Any]:
    for document in documents:
        if isinstance(document, dict) and document.get("kind") == "List":
            yield from _flat(document.get("items") or [])
        else:
            yield document


def injected(
    documents: Sequence[Any], template: settings.Template, *, every: bool
) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Each document after injection, with its warnings. Raises ``Refused`` or ``PodMalformed``."""
    for document in documents:
        if (found := _pod(document)) is None:
            yield document, ()
            continue
        pod, place = found
        decision = inject(pod, template, every=every)
        if isinstance(decision, Denial):
            raise Refused(f"{title(document)}: {decision.message}")
        patch = [{**each, "path": place + each["path"]} for each in decision.patch]
        yield apply(document, patch), decision.warnings


def _pod(document: Any) -> tuple[Json, str] | None:
    """The pod or pod template in a document, and the path to it."""
    if not isinstance(document, dict):
        return None
    if document.get("kind") == "Pod":
        return document, ""
    above = ("spec", "jobTemplate", "spec") if document.get("kind") == "CronJob" else ("spec",)
    inner: Any = document
    for key in (*above, "template"):
        inner = inner.get(key) if isinstance(inner, dict) else None
    return (inner, "/".join(("", *above, "template"))) if _has_containers(inner) else None


def _has_containers(template: Any) -> bool:
    """Whether this is a template of pods, and not of other objects."""
    spec = template.get("spec") if isinstance(template, dict) else None
    return isinstance(spec, dict) and "containers" in spec


if __name__ == "__main__":
    sys.exit(main())
