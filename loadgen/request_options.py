"""Reads the fields of a tenant that change its requests: key, headers, and further fields of the body.

A scenario cannot silently replace what the load generator sets itself. The error names the field of the
scenario that has the value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from loadgen.endpoints.dialect import KEY_HEADERS
from loadgen.endpoints.table import DIALECTS
from loadgen.fields import Field
from loadgen.scenario import Endpoint, Header

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
"""Matches the name of a header (RFC 9110, section 5.6.2)."""
_OWN_HEADERS = frozenset({"connection", "content-length", "content-type", "host", "transfer-encoding"})
_OWN_FIELDS = {
    "model": "model",
    "stream": "stream",
    "stream_options": "stream",
    "max_tokens": "output",
    "max_completion_tokens": "output",
    "max_output_tokens": "output",
    "prompt": "input",
    "messages": "input",
    "input": "input",
    "query": "input",
    "documents": "input",
    "ignore_eos": "ignore_eos",
    "priority": "priority",
}
"""Fields of bodies, with the field of the scenario that sets each."""


def check_fields(fields: Mapping[str, Field], endpoint: Endpoint) -> None:
    """Raise ``ScenarioError`` for a field that the endpoint of the tenant does not have."""
    dialect = DIALECTS[endpoint]
    refused = {
        "output": not dialect.generates,
        "ignore_eos": not dialect.takes_ignore_eos,
        "priority": not dialect.takes_priority,
        "conversation": not dialect.generates,
        "prefix": not dialect.takes_prefix,
        "batch": dialect.batch is None,
    }
    for name, is_refused in refused.items():
        if is_refused and name in fields:
            fields[name].fail(f"is not a part of requests to the {endpoint} endpoint", f"remove '{name}:'")


def secret(field: Field, environment: Mapping[str, str]) -> str:
    """A text for a header, or ``{env: NAME}`` with the name of an environment variable."""
    if not field.is_mapping:
        text = field.text()
    else:
        named = field.fields(("env",), required=("env",))["env"]
        variable = named.text()
        if not environment.get(variable):
            named.fail(f"names {variable}, which is not set", f"run with {variable}=… in the environment")
        text = environment[variable]
    if not text.isprintable() or not text.isascii():
        field.fail("has characters that a header cannot contain", "use printable ASCII")
    return text


def headers(field: Field, environment: Mapping[str, str], *, has_key: bool) -> tuple[Header, ...]:
    """Further headers: texts or environment variables by name. ``has_key``: the tenant has a key."""
    return tuple(_header(item, name, environment, has_key) for name, item in field.named().items())


def _header(field: Field, name: str, environment: Mapping[str, str], has_key: bool) -> Header:
    if _TOKEN(name) is None:
        field.fail("is not the name of a header", "use letters, digits and dashes")
    if name.lower() in _OWN_HEADERS:
        field.fail("is a header that loadgen sets itself", "remove it")
    if has_key and name.lower() in KEY_HEADERS:
        field.fail("is a header for keys, and the tenant has a key", "remove the header or 'key:'")
    return Header(name, secret(field, environment))


def extra_body(field: Field) -> tuple[tuple[str, object], ...]:
    """Further fields of the body, with any values."""
    found = field.named()
    for name, item in found.items():
        if name in _OWN_FIELDS:
            item.fail("is a field that loadgen sets itself", f"write the scenario's '{_OWN_FIELDS[name]}:'")
    return tuple((name, item.value()) for name, item in found.items())
