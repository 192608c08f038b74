"""The words of a command: which server they start, and the values and edits of its options. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence, Set

LOOPBACK = "127.0.0.1"
_LOOPBACKS = frozenset({LOOPBACK, "localhost", "::1"})
_PYTHON = re.compile(r"python[0-9.]*")
_VLLM_MODULE = "vllm.entrypoints."
_OTHER_SERVERS = frozenset({"text-generation-launcher", "tritonserver", "trtllm-serve", "llama-server"})
_OTHER_PAIRS = frozenset({("ollama", "serve"), ("lmdeploy", "serve"), ("sglang", "serve")})
_OTHER_MODULES = ("sglang.", "huggingfaceserver", "tensorrt_llm.", "lmdeploy.", "aphrodite.", "mlc_llm")
_HOST_OPTIONS = ("--host", "--hostname", "--http-address")
"""The options for the address that clients call: of most servers, of TGI, and of Triton. vLLM has further
addresses, such as ``--data-parallel-address``, on which it does not serve clients."""
_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
_TAG = re.compile(r"(:[^/@]*)?(@.*)?$")
_IMAGES = frozenset({"vllm", "sglang", "tritonserver", "ollama", "lmdeploy", "huggingfaceserver"})
_TGI = "text-generation-inference"
_HELPERS = frozenset({"router", "gateway", "proxy", "exporter", "sidecar", "bench", "benchmark"})
"""Parts of the names of images that belong to an engine and are none."""


def base(word: str) -> str:
    """The name of a program without its folder."""
    return word.rpartition("/")[2]


def option(words: Sequence[str], name: str) -> str | None:
    """The last value of an option, in both spellings; ``None`` without it. vLLM reads underscores as dashes.

    An option without a value has the word after it, or an empty text.
    """
    value = None
    for index, word in enumerate(words):
        key, equals, text = word.partition("=")
        if _names(key, name):
            following = words[index + 1] if index + 1 < len(words) else ""
            value = text if equals else following
    return value


def mentions(words: Sequence[str], name: str) -> bool:
    """Whether an option is anywhere in a script, except for lines that are comments."""
    spelt = re.compile(rf"(?<![\w-])--{name.removeprefix('--').replace('-', '[-_]')}(?![\w-])")
    return any(spelt.search(_COMMENT.sub("", word)) for word in words)


def _names(key: str, name: str) -> bool:
    return key.startswith("--") and key.replace("_", "-") == name


def starts_vllm(words: Sequence[str]) -> bool:
    """Whether a command starts vLLM's server."""
    return any(
        (base(first) == "vllm" and second == "serve") or (first == "-m" and second.startswith(_VLLM_MODULE))
        for first, second in itertools.pairwise(words)
    )


def is_vllm_command(words: Sequence[str]) -> bool:
    """Whether a command is vLLM's server itself, and not a program that starts it."""
    if not words:
        return False
    module = words[1:4]
    is_module = _PYTHON.fullmatch(base(words[0])) is not None and "-m" in module[:-1] and starts_vllm(module)
    return is_module or (base(words[0]) == "vllm" and list(words[1:2]) == ["serve"])


def starts_sglang(words: Sequence[str]) -> bool:
    """Whether a command starts SGLang's server, which also has ``--host`` and ``--port``."""
    return any(
        (base(first) == "sglang" and second == "serve") or (first == "-m" and second.startswith("sglang."))
        for first, second in itertools.pairwise(words)
    )


def starts_an_engine(words: Sequence[str]) -> bool:
    """Whether a command starts vLLM or another known inference server."""
    pairs = [(base(first), second) for first, second in itertools.pairwise(words)]
    return (
        starts_vllm(words)
        or any(base(word) in _OTHER_SERVERS for word in words[:4])
        or any(pair in _OTHER_PAIRS for pair in pairs)
        or any(first == "-m" and second.startswith(_OTHER_MODULES) for first, second in pairs)
    )


def is_vllm_image(image: str) -> bool:
    """Whether the name of an image says that its entry point is vLLM's server."""
    return "vllm" in _parts(image) and not _HELPERS & _parts(image)


def is_engine_image(image: str) -> bool:
    """Whether the name of an image says that its entry point is an inference server."""
    return bool(_IMAGES & _parts(image) or _TGI in image) and not _HELPERS & _parts(image)


def _parts(image: str) -> Set[str]:
    return frozenset(re.split(r"[/._-]", _TAG.sub("", image)))


def is_headless(words: Sequence[str]) -> bool:
    """Whether vLLM serves no HTTP, because another pod does."""
    return option(words, "--headless") is not None or option(words, "--api-server-count") == "0"


def is_on_the_loopback(words: Sequence[str]) -> bool:
    """Whether the options of the command bind its server to the loopback. The last value of each counts."""
    given = [value for name in _HOST_OPTIONS if (value := option(words, name)) is not None]
    return bool(given) and all(value.strip("[]") in _LOOPBACKS for value in given)


def interpreter(words: Sequence[str]) -> str | None:
    """The Python interpreter in a command that runs a module; ``None`` without one."""
    for word, following in itertools.pairwise(words):
        if _PYTHON.fullmatch(base(word)) and following == "-m":
            return word
    return None


def without(words: Sequence[str], names: Set[str], switches: Set[str] = frozenset()) -> list[str]:
    """The words without some options and their values, and without some options that have no value."""
    gone = removed(words, names, switches)
    return [word for index, word in enumerate(words) if index not in gone]


def removed(words: Sequence[str], names: Set[str], switches: Set[str] = frozenset()) -> Set[int]:
    """The indexes of the words that ``without`` leaves out."""
    gone: set[int] = set()
    skips = False
    for index, word in enumerate(words):
        key, equals, _ = word.partition("=")
        if skips:
            skips = False
        elif any(_names(key, name) for name in names):
            skips = not equals
        elif not any(_names(key, name) for name in switches):
            continue
        gone.add(index)
    return gone


def replaced(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The words with other values of some options."""
    made: list[str] = []
    pending = None
    for word in words:
        key, equals, _ = word.partition("=")
        if pending is not None:
            made.append(pending)
            pending = None
        elif key in values and equals:
            made.append(f"{key}={values[key]}")
        else:
            made.append(word)
            pending = values.get(key)
    return made
