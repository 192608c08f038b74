"""Options of a process: the command line and the environment into one frozen record, validated.

Every option ``--some-option`` may also be given as ``TOKENPOOL_SOME_OPTION``; the command line wins. The
record's fields give names, types and defaults; a ``Form`` says the rest.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

Record = TypeVar("Record")


class SettingsError(ValueError):
    """An option is missing or makes no sense; the text names it and the fix."""


class Address(NamedTuple):
    """A host and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


ANY, ANY_IPV4, ANY_IPV6 = "", "0.0.0.0", "::"
"""Hosts that stand for every interface: of both families as far as there are both, of one, of both."""


class Addresses(tuple[Address, ...]):
    """Where a server listens: one address or several."""

    __slots__ = ()

    @classmethod
    def of(cls, host: str, port: int) -> Addresses:
        """A single address."""
        return cls((Address(host, port),))

    def __str__(self) -> str:
        return ",".join(map(str, self))


class Origin(NamedTuple):
    """Where a server is, and whether it speaks TLS."""

    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        return str(Address(self.host, self.port))

    @property
    def url(self) -> str:
        """Without a path."""
        return f"{'https' if self.tls else 'http'}://{self}"


@dataclass(frozen=True)
class Form(Generic[Record]):
    """How a record is read."""

    record: type[Record]
    helps: Mapping[str, str]
    """By field, in the order in which they are shown."""
    example: str
    """A whole command, for who left something out."""
    readers: Mapping[str, Callable[[str, str], Any]] = field(default_factory=dict)
    """By field: from text and where it came from. The others are read by their defaults' types."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare every option on a parser; defaults and the environment are applied by ``read``."""
        defaults = self._defaults()
        for name, text in self.helps.items():
            shown = "" if defaults.get(name) is None else f" [{defaults[name]}]"
            explained = f"{text}{shown} ({variable(name)})"
            if defaults.get(name) is False:
                parser.add_argument(option(name), action="store_const", const="true", help=explained)
            else:
                parser.add_argument(option(name), help=explained, metavar="X")

    def read(self, arguments: argparse.Namespace, environment: Mapping[str, str]) -> Record:
        """The record from parsed arguments and the environment. Raises ``SettingsError``."""
        given: dict[str, Any] = {}
        for name in self.helps:
            text, source = getattr(arguments, name), option(name)
            if text is None and environment.get(variable(name)):
                text, source = environment[variable(name)], variable(name)
            if text is not None:
                given[name] = self._convert(name, text, source)
        defaults = self._defaults()
        missing = [option(name) for name in self.helps if name not in given and name not in defaults]
        if missing:
            raise SettingsError(f"{' and '.join(missing)} must be given, e.g. {self.example}")
        return self.record(**given)

    def _defaults(self) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for each in fields(self.record):  # type: ignore[arg-type]
            if each.default is not MISSING:
                made[each.name] = each.default
        return made

    def _convert(self, name: str, text: str, source: str) -> Any:
        if name in self.readers:
            return self.readers[name](text, source)
        default = self._defaults().get(name)
        if isinstance(default, bool):
            return boolean(text, source)
        if isinstance(default, int):
            return int(positive(text, source, whole=True))
        if isinstance(default, float):
            return positive(text, source)
        return text


def option(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """The environment's spelling of a field."""
    return "TOKENPOOL_" + name.upper()


def path(text: str, source: str) -> Path:
    """A path, as it is given."""
    return Path(text)


def one_of(*choices: str) -> Callable[[str, str], str]:
    """A reader of one of a few words."""

    def read(text: str, source: str) -> str:
        if text not in choices:
            raise SettingsError(f"{source}: {text!r} is not one of {', '.join(choices)}")
        return text

    return read


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
    """Whether a server on one address leaves no room for one on the other."""
    if one.port != other.port:
        return False
    if one.host == ANY_IPV6:
        return other.host != ANY_IPV4  # named beside it, that one serves IPv4, and this one IPv6 alone
    return one.host in (ANY, other.host) or (one.host == ANY_IPV4 and ":" not in other.host)


def upstream(text: str, source: str) -> Origin:
    """``http://HOST:PORT`` or ``https://HOST:PORT`` of a server, without a path."""
    match = re.fullmatch(r"(https?)://([^/?#@]+)/?", text)
    if match is None:
        raise SettingsError(
            f"{source}: {text!r} is not http://HOST:PORT or https://HOST:PORT; leave paths and users out"
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
    """A number of at least 0, where 0 turns something off."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        raise SettingsError(f"{source}: {text!r} is not a number of at least 0")
    return number


def share(text: str, source: str) -> float:
    """A part of something: a number above 0, and at most 1."""
    number = positive(text, source)
    if number > 1:
        raise SettingsError(f"{source}: {text!r} is more than the whole; give a number up to 1")
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
