"""The rules of the project: the domain is pure and knows nothing of who uses it; what is compiled can be."""

import ast
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPILED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["tokenpool"]["compiled"]
OURS = (
    "tokenpool", "runtime", "dashboard", "sidecar", "coordinator", "injector", "loadgen", "simulation",
    "toolbox", "demo", "experiments", "bench",
)  # fmt: skip
MAY_IMPORT = {
    "tokenpool": {"tokenpool"},
    "runtime": {"runtime"},
    "dashboard": {"dashboard", "runtime"},
    "sidecar": {"sidecar", "dashboard", "runtime", "tokenpool"},
    "coordinator": {"coordinator", "dashboard", "runtime", "tokenpool"},
    "injector": {"injector", "runtime"},
    "toolbox": {"toolbox", "loadgen"},
    "simulation": {"simulation", "tokenpool", "toolbox"},
    "loadgen": {"loadgen", "runtime", "tokenpool"},
    "demo": {"demo", "toolbox"},
    "experiments": {"experiments", "loadgen", "demo", "toolbox"},
}
IMPURE = {
    "aiohttp", "asyncio", "datetime", "http", "httptools", "io", "logging", "multiprocessing", "os",
    "pathlib",
    "random", "secrets", "selectors", "shutil", "signal", "socket", "subprocess", "sys", "threading", "time",
    "urllib", "uuid", "uvloop",
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """The top-level packages that a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def every_module() -> list[Path]:
    return [path for package in MAY_IMPORT for path in modules(package)]


@pytest.mark.parametrize("path", every_module(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_towards_the_domain(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]

    strangers = (imports(path) & set(OURS)) - MAY_IMPORT[package]

    assert not strangers


@pytest.mark.parametrize(
    "path",
    [p for p in modules("tokenpool") if "store" not in p.relative_to(ROOT).parts],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_the_domain_does_no_io_and_has_no_clock(path: Path) -> None:
    assert not imports(path) & IMPURE


@pytest.mark.parametrize("path", every_module(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_module_says_what_lives_there(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_rules_notice_a_forbidden_import(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "def f():\n    import socket\n    from sidecar.controller.controller import Controller\n"
    )

    assert imports(module) == {"socket", "sidecar"}


def classes(path: Path) -> list[ast.ClassDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]


@cache
def compiled_classes() -> frozenset[str]:
    return frozenset(node.name for module in COMPILED for node in classes(ROOT / module))


def what_cannot_be_compiled(path: Path) -> list[str]:
    """Classes of a module that mypyc would make something else of, without a word."""
    bases_left = {"NamedTuple", "Protocol", "asyncio.Protocol", "Exception", "ValueError", "Collector"}
    bases_left |= {"enum.Enum", "StrEnum"}
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
    outside = [path for path in every_module() if str(path.relative_to(ROOT)) not in COMPILED]

    for path in outside:
        here = {node.name for node in classes(path)}
        made = {ast.unparse(base) for node in classes(path) for base in node.bases}
        assert not made & (compiled_classes() - here), path


def test_the_rules_notice_what_cannot_be_compiled(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("class A(Struct): pass\nclass B(list): pass\nclass C(x=1): pass\nclass D: pass\n")

    assert what_cannot_be_compiled(module) == ["A", "B", "C"]
