"""Options of a process: the command line and the environment become one frozen record, validated.

Every option ``--some-option`` may also be given as ``TOKENPOOL_SOME_OPTION``; the command line wins. A field
of the record describes an option completely::

    @record
    class Settings:
        max_head_bytes: int = option("size limit of a request head, bytes", default=32 * 1024)

``describe`` yields these descriptions, for the command line and for the reference in the documentation.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, TypeVar, dataclass_transform, get_args, get_type_hints

Record = TypeVar("Record")
_OPTION = "option"


class SettingsError(ValueError):
    """An option is missing or invalid; the text names it and the fix."""


class Address(NamedTuple):
    """A host and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


ANY, ANY_IPV4, ANY_IPV6 = "", "0.0.0.0", "::"
"""Hosts that stand for every interface: of all available families, of IPv4, of both families."""


class Addresses(tuple[Address, ...]):
    """The addresses of one server, one or several."""

    __slots__ = ()

    @classmethod
    def of(cls, host: str, port: int) -> Addresses:
        """A single address."""
        return cls((Address(host, port),))

    def __str__(self) -> str:
        return ",".join(map(str, self))


class Origin(NamedTuple):
    """The address of a server, and whether it speaks TLS."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return str(Address(self.host, self.port))

    @property
    def url(self) -> str:
        """The URL, without a path."""
        return f"{'https' if self.tls else 'http'}://{self}"


Reader = Callable[[str, str], Any]
"""Makes a value from a text. The second argument names the source of the text. Raises ``SettingsError``."""


class _Said(NamedTuple):
    """The description of an option, in the metadata of its field."""

    help: str
    read: Reader | None


def option(help: str, *, default: Any = MISSING, read: Reader | None = None) -> Any:  # noqa: A002
    """A field of a record, with its description.

    ``help`` is plain English, with the unit. An option without a default is required. Without ``read``, the
    field's type decides how text is read (``_READERS``).
    """
    return field(default=default, metadata={_OPTION: _Said(help, read)})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option,))
def record(made: type[Record]) -> type[Record]:
    """Make a class with options a frozen dataclass with keyword arguments."""
    return dataclass(frozen=True, slots=True, kw_only=True)(made)


@dataclass(frozen=True, slots=True)
class Described:
    """One option with everything that a command line, an error message or a reference page needs."""

    name: str
    """The name of the record's field."""
    help: str
    type: Any
    """The type of the value, such as ``float`` or ``Path | None``."""
    default: Any
    """``dataclasses.MISSING`` if the option is required."""
    read: Reader

    @property
    def flag(self) -> str:
        """The command line's spelling, such as ``--max-head-bytes``."""
        return flag(self.name)

    @property
    def variable(self) -> str:
        """The environment's spelling, such as ``TOKENPOOL_MAX_HEAD_BYTES``."""
        return "TOKENPOOL_" + self.name.upper()

    @property
    def is_required(self) -> bool:
        """Whether the option has no default."""
        return self.default is MISSING

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value, and turns on a feature that is off by default."""
        return self.default is False

    @property
    def default_text(self) -> str:
        """The default as a person writes it; empty without a default."""
        if self.is_required or self.default is None:
            return ""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if isinstance(self.default, Origin):
            return self.default.url
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    @property
    def type_text(self) -> str:
        """The type in a word or two, such as ``float`` or ``Path | None``."""
        return self.type.__name__ if isinstance(self.type, type) else str(self.type).replace("pathlib.", "")


def describe(made: type[Any]) -> tuple[Described, ...]:
    """All options of a class that ``record`` made, in the order of its fields."""
    hints = get_type_hints(made)
    return tuple(
        Described(
            each.name, said.help, hints[each.name], each.default, said.read or _reader(hints[each.name])
        )
        for each in fields(made)
        if (said := each.metadata[_OPTION])
    )


def _reader(kind: Any) -> Reader:
    if kind in _READERS:
        return _READERS[kind]
    [present] = [part for part in get_args(kind) if part is not NoneType]
    return _READERS[present]


def add_arguments(parser: argparse.ArgumentParser, made: type[Any]) -> None:
    """Declare every option of a class on a parser; ``read`` applies defaults and the environment."""
    for each in describe(made):
        default = f" [{each.default_text}]" if each.default_text else ""
        explained = f"{each.help}{default} ({each.variable})"
        if each.is_switch:
            parser.add_argument(each.flag, action="store_const", const="true", help=explained)
        else:
            parser.add_argument(each.flag, help=explained, metavar="X")


def read(
    made: type[Record], arguments: argparse.Namespace, environment: Mapping[str, str], *, example: str
) -> Record:
    """The record from parsed arguments and the environment. The command line wins.

    ``example`` is a whole command; the message about a missing option shows it. Raises ``SettingsError``.
    """
    given: dict[str, Any] = {}
    missing = []
    for each in describe(made):
        text, source = getattr(arguments, each.name), each.flag
        if text is None and environment.get(each.variable):
            text, source = environment[each.variable], each.variable
        if text is not None:
            given[each.name] = each.read(text, source)
        elif each.is_required:
            missing.append(each.flag)
    if missing:
        raise SettingsError(f"{' and '.join(missing)} must be given, e.g. {example}")
    return made(**given)


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")


def text(text: str, source: str) -> str:
    """Any text, unchanged."""
    return text


def path(text: str, source: str) -> Path:
    """A path, unchanged."""
    return Path(text)


def one_of(*choices: str) -> Callable[[str, str], str]:
    """A reader of one of a few words."""

    def read(text: str, source: str) -> str:
        if text not in choices:
            raise SettingsError(f"{source}: {text!r} is not one of {', '.join(choices)}")
        return text

    return read


log_level = one_of("debug", "info", "warning", "error")


def matching(pattern: str, what: str) -> Callable[[str, str], str]:
    """A reader of text of a certain form."""

    def read(text: str, source: str) -> str:
        if not re.fullmatch(pattern, text):
            raise SettingsError(f"{source}: {text!r} is not {what}")
        return text

    return read


def address(text: str, source: str) -> Address:
    """``HOST:PORT``, ``[V6]:PORT`` or ``:PORT`` (every interface)."""
    match = re.fullmatch(r"(\[[^\[\]]*:[^\[\]]*\]|[^\[\]:\s]*):([0-9]{1,5})", text)
    if match is None or int(match[2]) > 65535:
        raise SettingsError(
            f"{source}: {text!r} is not HOST:PORT with a port up to 65535, such as 127.0.0.1:8080 or [::]:80"
        )
    return Address(match[1].strip("[]"), int(match[2]))


def addresses(text: str, source: str) -> Addresses:
    """Addresses to listen on, separated by commas."""
    read: list[Address] = []
    for each in text.split(","):
        one = address(each.strip(), source)
        for other in read:
            if one.port and (_includes(one, other) or _includes(other, one)):
                raise SettingsError(f"{source}: {other} and {one} are both given; one includes the other")
        read.append(one)
    return Addresses(read)


def _includes(one: Address, other: Address) -> bool:
    """Whether a server on one address prevents a server on the other."""
    if one.port != other.port:
        return False
    if one.host == ANY_IPV6:
        return other.host != ANY_IPV4  # with both, 0.0.0.0 serves IPv4, and [::] serves only IPv6
    return one.host in (ANY, other.host) or (one.host == ANY_IPV4 and ":" not in other.host)


def upstream(text: str, source: str) -> Origin:
    """``http://HOST:PORT`` or ``https://HOST:PORT`` of a server, without a path."""
    match = re.fullmatch(r"(https?)://([^/?#@]+)/?", text)
    if match is None:
        raise SettingsError(
            f"{source}: {text!r} is not http://HOST:PORT or https://HOST:PORT; remove any path or user"
        )
    scheme, authority = match.groups()
    if not re.search(r":\d+$", authority):
        authority += ":443" if scheme == "https" else ":80"
    host, port = address(authority, source)
    if host == ANY:
        raise SettingsError(f"{source}: {text!r} names no host")
    return Origin(host, port, scheme == "https")


def boolean(text: str, source: str) -> bool:
    """Yes or no, in the usual words."""
    lowered = text.lower()
    if lowered not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise SettingsError(f"{source}: {text!r} is neither true nor false")
    return lowered in ("1", "true", "yes", "on")


def not_negative(text: str, source: str) -> float:
    """A number of at least 0; 0 turns the feature off."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        raise SettingsError(f"{source}: {text!r} is not a number of at least 0")
    return number


def share(text: str, source: str) -> float:
    """A share: a number above 0, and at most 1."""
    number = positive(text, source)
    if number > 1:
        raise SettingsError(f"{source}: {text!r} is above 1; give a number above 0 and up to 1")
    return number


def positive(text: str, source: str, *, whole: bool = False) -> float:
    """A number above 0."""
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        number = 0
    if not 0 < number < float("inf"):
        kind = "whole number" if whole else "number"
        raise SettingsError(f"{source}: {text!r} is not a {kind} above 0")
    return number


def whole(text: str, source: str) -> int:
    """A whole number above 0."""
    return int(positive(text, source, whole=True))


_READERS: dict[Any, Reader] = {
    bool: boolean,
    int: whole,
    float: positive,
    str: text,
    Path: path,
    Addresses: addresses,
    Origin: upstream,
}
"""The reader of each type of field, for options that name no other."""


def check_pair(one: str, first: Path | None, other: str, second: Path | None) -> None:
    """Check that a certificate and its key are given together, or neither. Raises ``SettingsError``.

    ``one`` and ``other`` are the names of their options.
    """
    if (first is None) != (second is None):
        missing, given = (one, other) if first is None else (other, one)
        raise SettingsError(f"{given} is given without {missing}; a certificate and its key go together")
