"""The project keeps its architecture: which part imports which, a pure domain, and what can be compiled.

The rules themselves are in `tests/architecture.py`. Here are the layers, and a planted violation of each
rule.
"""

import ast
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from runtime import data_path
from tests.architecture import (
    Layers,
    Module,
    cycles,
    forbidden_packages,
    imported,
    modules_in,
    stored_callables,
    upward_imports,
)

ROOT = Path(__file__).parent.parent
COMPILED = [f"{module.replace('.', '/')}.py" for module in data_path.MODULES]
OURS = (
    "tokenpool", "runtime", "dashboard", "sidecar", "coordinator", "injector", "loadgen", "simulation",
    "cli", "toolbox", "demo", "experiments", "bench", "monitoring", "release",
)  # fmt: skip
MODULES = modules_in(ROOT, OURS)

MAY_IMPORT = {
    "tokenpool": set(),
    "runtime": set(),
    "dashboard": {"runtime"},
    "sidecar": {"dashboard", "runtime", "tokenpool"},
    "coordinator": {"dashboard", "runtime", "tokenpool"},
    "injector": {"runtime"},
    "cli": {"coordinator", "dashboard", "loadgen", "runtime", "simulation", "tokenpool"},
    "monitoring": set(),
    "toolbox": {"loadgen"},
    "simulation": {"coordinator", "loadgen", "tokenpool", "toolbox"},
    "loadgen": {"runtime", "tokenpool"},
    "demo": {"toolbox"},
    "experiments": {"loadgen", "demo", "tokenpool", "toolbox"},
    "release": set(),
}  # fmt: skip
"""What each package may import besides itself. The benchmark may import anything."""

LAYERS: dict[str, Layers] = {
    "tokenpool": [
        frozenset({"amounts", "credentials", "entitlements", "holders", "outcomes", "yaml_nodes", "usage"}),
        frozenset({"quotas"}),
        frozenset({"poolfile"}),
        frozenset({"pricing"}),
        frozenset({"accounting"}),
        frozenset({"capacity"}),
        frozenset({"admission"}),
        frozenset({"planning"}),
        frozenset({"leases"}),
        frozenset({"control"}),
        frozenset({"store"}),
    ],
    "sidecar": [
        frozenset({"settings", "lifecycle", "dialects", "histogram", "stored_rings", "worker"}),
        frozenset(
            {
                "identity",
                "decisions",
                "pool_secret",
                "telemetry",
                "loop_holds",
                "memory_bounds",
                "quota_metrics",
                "tracing",
                "usage",
            }
        ),
        frozenset({"engine", "jwt"}),
        frozenset({"configuration"}),
        frozenset({"proxy"}),
        frozenset({"handover"}),
        frozenset({"controller"}),
        frozenset({"report", "pool_file_watcher", "local_planner", "usage_records"}),
        frozenset({"issued_keys", "ports", "price_sharing", "published_file", "first_file"}),
        frozenset({"quota_exchange", "replication"}),
        frozenset({"shared_limits", "admin"}),
        frozenset({"app", "workers"}),
        frozenset({"__main__"}),
    ],
}
"""From the bottom up: each part imports its own layer and the layers below."""

IMPURE = {
    "aiohttp", "asyncio", "datetime", "http", "httptools", "io", "logging", "multiprocessing", "os",
    "pathlib",
    "random", "secrets", "selectors", "shutil", "signal", "socket", "subprocess", "sys", "threading", "time",
    "urllib", "uuid", "uvloop",
}  # fmt: skip


CALENDARS = {"tokenpool.quotas.windows": {"datetime"}}
"""Calendar arithmetic: ``datetime`` without a clock."""


def holds(found: Iterable[str]) -> None:
    """Fail with every violation, a line each."""
    if lines := sorted(found):
        pytest.fail("\n".join(lines), pytrace=False)


def domain() -> dict[str, Module]:
    """The modules of the pure domain: the lease store beside it does I/O."""
    return {
        name: module
        for name, module in MODULES.items()
        if module.top == "tokenpool" and not name.startswith("tokenpool.store")
    }


def planted(root: Path, **sources: str) -> dict[str, Module]:
    """Modules with these sources; a double underscore in a keyword stands for a folder."""
    for name, source in sources.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return modules_in(root, {name.partition("__")[0] for name in sources})


def test_packages_import_only_what_they_may() -> None:
    holds(forbidden_packages(MODULES, MAY_IMPORT))


def test_an_import_of_a_forbidden_package_is_noticed(tmp_path: Path) -> None:
    modules = planted(
        tmp_path,
        domain__a="def f():\n    from server.app import App\n",
        server__app="import domain.a\nfrom domain import a\n",
    )
    assert list(forbidden_packages(modules, {"domain": set()})) == ["domain.a -> server"]


@pytest.mark.parametrize("package", LAYERS)
def test_imports_inside_a_package_run_downwards(package: str) -> None:
    holds(upward_imports(MODULES, package, LAYERS[package]))


def test_an_import_of_a_higher_layer_is_noticed(tmp_path: Path) -> None:
    modules = planted(
        tmp_path,
        p__low__a="from p.high import b\n",
        p__low__c="def f():\n    import p.high.b\n",
        p__low__d="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..high.b import f\n",
        p__high__b="from p.low import a, c\nfrom p.even import e\nfrom p.high import f\n",
        p__high__f="",
        p__even__e="from p.high.b import f",
        p__stray="from p.low import a",
    )
    layers = [frozenset({"low"}), frozenset({"high", "even"})]
    assert list(upward_imports(modules, "p", layers)) == [
        "p.low.a -> p.high.b",
        "p.low.c -> p.high.b",
        "p.low.d -> p.high.b",
        "p.stray -> p.low.a",
    ]


def test_every_package_is_installed() -> None:
    """`pyproject.toml` lists the packages, because their parent folder has others, too."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    tops = {name.partition(".")[0] for name in listed}
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in tops
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert found == set(listed)


def test_no_modules_import_each_other() -> None:
    holds(cycles(MODULES))


def test_a_cycle_of_imports_is_noticed(tmp_path: Path) -> None:
    modules = planted(
        tmp_path,
        p__a="from p import b",
        p__b="def f():\n    from p.c import g",
        p__c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.a",
        p__d="from p import a",
        p____init__="from p.d import h",
        p__itself="from p import itself",
    )
    assert list(cycles(modules)) == ["p.a <-> p.b <-> p.c", "p.itself"]


def test_no_domain_object_stores_a_callable() -> None:
    holds(stored_callables(domain()))


def test_a_stored_callable_is_noticed(tmp_path: Path) -> None:
    modules = planted(
        tmp_path,
        p__types="""
Notify = Callable[[int], None]
class Hook(Protocol):
    def __call__(self) -> None: ...
""",
        p__a="""
class Record(NamedTuple):
    number: int
    then: Notify | None
    quoted: "list[Hook]"
class Keeper:
    on_end = lambda: None
    def __init__(self, number: int, notify: Callable[[], None], hook: Hook | None = None) -> None:
        self.number = number
        self.notify = notify
        self._hook = hook or None
        self._list: dict[str, list[Notify]] = {}
        self.method = self.run
        self.total = self.size
    @property
    def size(self) -> int: return 1
    def run(self, call: Callable[[], int]) -> None:
        self.number = call()
""",
    )
    assert list(stored_callables(modules)) == [
        *("p.a.Record.quoted", "p.a.Record.then"),
        *(f"p.a.Keeper.{name}" for name in ("_hook", "_list", "method", "notify", "on_end")),
    ]


@pytest.mark.parametrize("name", domain())
def test_the_domain_does_no_io_and_has_no_clock(name: str) -> None:
    found = {each.partition(".")[0] for each in imported(MODULES[name])}
    assert not found & IMPURE - CALENDARS.get(name, set())


@pytest.mark.parametrize("name", CALENDARS)
def test_calendars_ask_no_clock(name: str) -> None:
    called = {node.attr for node in ast.walk(MODULES[name].tree) if isinstance(node, ast.Attribute)}
    assert not called & {"now", "today", "utcnow"}


def test_an_impure_import_is_noticed(tmp_path: Path) -> None:
    modules = planted(tmp_path, p__a="def f():\n    import socket\n    from os.path import join\n")

    assert imported(modules["p.a"]) == {"socket", "os.path"}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_lives_there(name: str) -> None:
    assert ast.get_docstring(MODULES[name].tree)


def classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]


@cache
def compiled_classes() -> frozenset[str]:
    return frozenset(node.name for module in COMPILED for node in classes(ROOT / module))


def what_cannot_be_compiled(path: Path) -> list[str]:
    """Classes of a module that mypyc would make something else of, without a word."""
    bases_left = {"NamedTuple", "Protocol", "asyncio.Protocol", "Exception", "ValueError", "Collector"}
    bases_left |= {"enum.Enum", "enum.IntEnum", "StrEnum"}
    bases_left |= compiled_classes()
    return [
        node.name
        for node in classes(path)
        if node.keywords or {ast.unparse(base) for base in node.bases} - bases_left
    ]


@pytest.mark.parametrize("name", COMPILED)
def test_modules_that_are_compiled_have_nothing_that_cannot_be(name: str) -> None:
    assert what_cannot_be_compiled(ROOT / name) == []


def test_nothing_outside_is_made_of_a_compiled_class() -> None:
    outside = [each.path for each in MODULES.values() if str(each.path.relative_to(ROOT)) not in COMPILED]

    for path in outside:
        here = {node.name for node in classes(path)}
        made = {ast.unparse(base) for node in classes(path) for base in node.bases}
        assert not made & (compiled_classes() - here), path


def test_the_rules_notice_what_cannot_be_compiled(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("class A(Struct): pass\nclass B(list): pass\nclass C(x=1): pass\nclass D: pass\n")

    assert what_cannot_be_compiled(module) == ["A", "B", "C"]
