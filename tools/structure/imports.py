"""Who imports whom in convbn, read from the source text: nothing is imported to find out.

Imports inside functions and under ``TYPE_CHECKING`` count, and so do names of modules that stand in strings: tables of
lazily imported names are imports that wait.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Import", "circles", "imports", "modules"]

ROOT = Path(__file__).resolve().parents[2]

FOLDERS = {"convbn.fuse": "fuse", "convbn.export": "export", "convbn.bench": "bench", "convbn": "src/convbn"}
"""Packages and where they stand (docs/decisions/0001-rooms-and-packages.md)."""

DOTTED = re.compile(r"convbn(?:\.\w+)+")


@dataclass(frozen=True)
class Import:
    """One module names another.

    Attributes:
        source: the module that imports.
        target: the module that is imported.
        line: of ``source``.
        kind: ``load`` where it happens when ``source`` is loaded, else ``call`` (inside a function), ``type`` (for
            annotations alone) or ``text`` (the name in a string).
    """

    source: str
    target: str
    line: int
    kind: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line} → {self.target} ({self.kind})"


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the product by its dotted name; a package's is that of its ``__init__.py``."""
    found: dict[str, Path] = {}
    for package, folder in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            inside = path.relative_to(root / folder)
            if package == "convbn" and inside.parts[0] in FOLDERS.values():
                continue  # a link to a room
            parts = [package, *inside.with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(files: Mapping[str, Path]) -> list[Import]:
    """Every import of a module of ``files`` by another, without repetitions in one line."""
    found: dict[Import, None] = {}
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for target, node, kind in _named(tree, package, "load", _docstrings(tree)):
            module = _longest(target, files)
            if module not in (None, name):
                found[Import(name, module, node.lineno, kind)] = None
    return list(found)


def _named(
    node: ast.AST, package: str, kind: str, skip: set[int]
) -> Iterator[tuple[str, ast.expr | ast.stmt, str]]:
    """Dotted names that could be modules, below a node."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, node, kind) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        parents = package.split(".")
        base = [*parents[: len(parents) - node.level + 1]] if node.level else []
        base += [node.module] if node.module else []
        yield from ((".".join([*base, alias.name]), node, kind) for alias in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skip:
        yield from ((name, node, "text") for name in DOTTED.findall(node.value))
    elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        for child in node.body:
            yield from _named(child, package, "type", skip)
        for child in node.orelse:
            yield from _named(child, package, kind, skip)
    else:
        inside = "call" if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) else kind
        for child in ast.iter_child_nodes(node):
            yield from _named(child, package, inside, skip)


def _docstrings(tree: ast.Module) -> set[int]:
    """The constants that are prose: strings that stand alone as a statement."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def _longest(name: str, files: Mapping[str, Path]) -> str | None:
    """The module that a dotted name is or stands in: the longest of its beginnings that is one."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name or None


def circles(edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The groups in which each name reaches each other along the edges (Tarjan's components of two or more)."""
    onward: dict[str, set[str]] = {}
    for source, target in edges:
        onward.setdefault(source, set()).add(target)
        onward.setdefault(target, set())
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = low[name] = len(number)
        stack.append(name)
        for target in sorted(onward[name]):
            if target not in number:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], number[target])
        if low[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1 or name in onward[name]:
                found.append(sorted(group))

    for name in sorted(onward):
        if name not in number:
            visit(name)
    return found
