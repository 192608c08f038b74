"""The rules of the architecture, each a function over source files that returns the violations it finds.

`tests/test_architecture.py` holds the project to them. Nothing here knows a rule's exceptions.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

Layers = Sequence[frozenset[str]]
"""The parts of a package from the bottom up. A part may import its own layer and the layers below."""


@dataclass(frozen=True)
class Module:
    """One source file, under the name that others import it by."""

    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(), str(self.path))

    @property
    def top(self) -> str:
        return self.name.partition(".")[0]


def modules_in(root: Path, packages: Iterable[str]) -> dict[str, Module]:
    """Every module of some packages below a folder, by its name."""
    found = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, path)
    return found


def imported(module: Module, among: Mapping[str, Module] | None = None) -> set[str]:
    """The full names of all modules that a module imports: in functions and for type checking too.

    ``from package import name`` means the module ``package.name`` if that is one ``among`` the given modules.
    Importing a module also runs the packages around it; that is not counted.
    """
    known = among or {}
    found: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = _base(module, node)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in known else base for name in names}
    return found


def _base(module: Module, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    is_package = module.path.name == "__init__.py"
    parts = module.name.split(".")
    kept = parts[: len(parts) - node.level + is_package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def forbidden_packages(modules: Mapping[str, Module], may_import: Mapping[str, set[str]]) -> Iterator[str]:
    """Imports of one of our packages by another that may not. A package without a line may import any."""
    for module in modules.values():
        ours = {name.partition(".")[0] for name in imported(module, modules)} & {
            m.top for m in modules.values()
        }
        for package in sorted(ours - may_import.get(module.top, ours) - {module.top}):
            yield f"{module.name} -> {package}"


def upward_imports(modules: Mapping[str, Module], package: str, layers: Layers) -> Iterator[str]:
    """Imports inside a package from a lower layer to a higher one, and those of a part without a layer."""
    rank = {part: height for height, layer in enumerate(layers) for part in layer}
    for module in modules.values():
        own = _part(module.name, package)
        for name in sorted(imported(module, modules)):
            other = _part(name, package)
            if own is None or other is None or own == other:
                continue
            if own not in rank or other not in rank or rank[other] > rank[own]:
                yield f"{module.name} -> {name}"


def _part(name: str, package: str) -> str | None:
    """What follows the package in a module's name: its sub-package, or the module itself."""
    top, _, rest = name.partition(".")
    return rest.partition(".")[0] or None if top == package else None


def cycles(modules: Mapping[str, Module]) -> Iterator[str]:
    """Every largest set of modules that import each other, directly or around corners."""
    edges = {name: imported(module, modules) & modules.keys() for name, module in modules.items()}
    for component in _components(edges):
        if len(component) > 1 or component[0] in edges[component[0]]:
            yield " <-> ".join(sorted(component))


def _components(edges: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """The strongly connected components of a graph (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    open_: list[str] = []

    def visit(node: str) -> Iterator[list[str]]:
        index[node] = low[node] = len(index)
        open_.append(node)
        for other in sorted(edges[node]):
            if other not in index:
                yield from visit(other)
                low[node] = min(low[node], low[other])
            elif other in open_:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = open_.index(node)
            yield open_[at:]
            del open_[at:]

    for node in sorted(edges):
        if node not in index:
            yield from visit(node)


def stored_callables(modules: Mapping[str, Module]) -> Iterator[str]:
    """Attributes of classes that hold something to call.

    That is an attribute annotated as a callable, or assigned from a parameter annotated so, from a lambda
    expression, or from a method of the object itself. An alias of a callable type, and a class with
    ``__call__``, count as callable types.
    """
    callables = _callable_types(modules)
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                for attribute in sorted(_callables_of(node, callables)):
                    yield f"{module.name}.{node.name}.{attribute}"


def _callable_types(modules: Mapping[str, Module]) -> set[str]:
    found = {"Callable"}
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef) and any(
                isinstance(each, ast.FunctionDef) and each.name == "__call__" for each in node.body
            ):
                found.add(node.name)
    # Aliases of aliases are found too, since this goes on until nothing is new.
    while True:
        known = len(found)
        for module in modules.values():
            for node in module.tree.body:
                match node:
                    case ast.Assign(targets=[ast.Name(id=name)], value=value):
                        pass
                    case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                        pass
                    case _:
                        continue
                if isinstance(value, ast.Subscript | ast.Name | ast.BinOp) and _mentions(value, found):
                    found.add(name)
        if len(found) == known:
            return found


def _callables_of(node: ast.ClassDef, callables: set[str]) -> set[str]:
    found = set()
    methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    names = {method.name for method in methods if not _is_property(method)}
    for each in node.body:
        match each:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation) if _mentions(
                annotation, callables
            ):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Lambda()):
                found.add(name)
    for method in methods:
        arguments = [*method.args.posonlyargs, *method.args.args, *method.args.kwonlyargs]
        given = {each.arg for each in arguments if each.annotation and _mentions(each.annotation, callables)}
        for inner in ast.walk(method):
            match inner:
                case ast.AnnAssign(
                    target=ast.Attribute(value=ast.Name(id="self"), attr=name),
                    annotation=annotation,
                    value=value,
                ):
                    if _mentions(annotation, callables) or _calls_back(value, given, names):
                        found.add(name)
                case ast.Assign(targets=targets, value=value) if _calls_back(value, given, names):
                    found |= {
                        target.attr
                        for target in targets
                        if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
                    }
    return found


def _is_property(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(each).endswith("property") for each in method.decorator_list)


def _mentions(annotation: ast.expr, names: set[str]) -> bool:
    """Whether an annotation, quoted or not, names one of some types anywhere in it."""
    for node in ast.walk(annotation):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) if name in names:
                return True
            case ast.Constant(value=str(text)) if names & set(re.findall(r"\w+", text)):
                return True
    return False


def _calls_back(value: ast.expr | None, given: set[str], methods: set[str]) -> bool:
    match value:
        case ast.Lambda():
            return True
        case ast.Name(id=name):
            return name in given
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name in methods
        case ast.IfExp(body=body, orelse=other):
            return _calls_back(body, given, methods) or _calls_back(other, given, methods)
        case ast.BoolOp(values=values):
            return any(_calls_back(each, given, methods) for each in values)
    return False
