"""What became of each mutant, read from the files that mutmut leaves."""

from __future__ import annotations

import ast
import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

KILLED, TYPES, TIMEOUT, SURVIVED, UNTESTED = "killed", "types", "timeout", "survived", "no test"
VERDICTS = {1: KILLED, 3: KILLED, 37: TYPES, 0: SURVIVED, 5: UNTESTED, 33: UNTESTED}
# SIGXCPU, by mutmut's own clock or the kernel's, and the kill that follows it; a crash of the interpreter
# is seen by any test.
VERDICTS |= dict.fromkeys((24, -24, 36, 152, 255, -9), TIMEOUT) | {-11: KILLED}

ELLIPSIS = " ⏎ "


@dataclass(frozen=True)
class Mutant:
    """One change of one function.

    Attributes:
        file: below ``src/convbn``, as in the repository.
        function: its name, with its class.
        change: ``old → new``, the lines that differ.
        verdict: one of those above.
    """

    file: str
    function: str
    change: str
    verdict: str

    @property
    def key(self) -> str:
        """What it is called in ``survivors.toml``; numbers would change with every edit of a function."""
        return f"{self.file} {self.function}: {self.change}"


def patterns(within: Sequence[str] = (), digits: str = "") -> list[str]:
    """What mutmut is told to try, in its own names: the changes in some files or folders, or a sample, or all (none).

    Args:
        within: files or folders as they stand in the repository, all of them if there are none.
        digits: a change is in the sample where its number in its function ends in one of these, all if there are none.
    """
    if not within and not digits:
        return []
    places = [f"convbn.{place.removesuffix('.py').rstrip('/').replace('/', '.')}." for place in within]
    return [f"{place}*__mutmut_*{digit}" for place in places or [""] for digit in digits or [""]]


def drawn(name: str, chosen: Sequence[str]) -> bool:
    """Whether a mutant is one of those to try; all are where there are no patterns."""
    return not chosen or any(fnmatchcase(name, pattern) for pattern in chosen)


def waiting(folder: Path, chosen: Sequence[str]) -> list[str]:
    """The names of those to try that mutmut has not come to."""
    codes = (json.loads(meta.read_text())["exit_code_by_key"] for meta in sorted(folder.rglob("*.py.meta")))
    return [name for known in codes for name, code in known.items() if code is None and drawn(name, chosen)]


def mutants(folder: Path, chosen: Sequence[str] = ()) -> list[Mutant]:
    """Every mutant below a staged tree that was to be tried, in the order of files and lines.

    Raises:
        ValueError: mutmut did not come to one of them.
    """
    root = folder / "mutants" / "src" / "convbn"
    found = []
    for meta in sorted(root.rglob("*.py.meta")):
        path = meta.with_suffix("")
        bodies = functions(path.read_text())
        for key, code in json.loads(meta.read_text())["exit_code_by_key"].items():
            if not drawn(key, chosen):
                continue
            if code not in VERDICTS:
                raise ValueError(f"{key} was not run to its end (exit code {code}); run again with --keep")
            name = key.rpartition(".")[2]
            original = re.sub(r"__mutmut_\d+$", "__mutmut_orig", name)
            found.append(
                Mutant(
                    path.relative_to(root).as_posix(),
                    readable(original),
                    change(bodies[original], bodies[name]),
                    VERDICTS[code],
                )
            )
    return found


def forget_survivors(folder: Path, chosen: Sequence[str] = ()) -> None:
    """Let mutmut try those that no test noticed again, with the tests that there are now."""
    for meta in folder.rglob("*.py.meta"):
        left = json.loads(meta.read_text())
        codes = left["exit_code_by_key"]
        alive = [
            key
            for key, code in codes.items()
            if VERDICTS.get(code, UNTESTED) in (SURVIVED, UNTESTED) and drawn(key, chosen)
        ]
        codes |= dict.fromkeys(alive)
        meta.write_text(json.dumps(left))


def functions(source: str) -> dict[str, list[str]]:
    """The lines of each function by its name, without the line that names it."""
    lines = source.splitlines()
    return {
        node.name: [line.strip() for line in lines[node.lineno : node.end_lineno]]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name
    }


def change(before: list[str], after: list[str]) -> str:
    """The lines that differ, ``old → new``."""
    old, new = [], []
    for line in difflib.unified_diff(before, after, n=0, lineterm=""):
        if line.startswith(("---", "+++", "@@")):
            continue
        (old if line[0] == "-" else new).append(line[1:])
    return f"{ELLIPSIS.join(old)} → {ELLIPSIS.join(new)}"


def readable(mangled: str) -> str:
    """``xǁAffineǁinverse__mutmut_orig`` is ``Affine.inverse``, ``x_forward__mutmut_orig`` is ``forward``."""
    name = mangled.removesuffix("__mutmut_orig")
    return ".".join(name.split("ǁ")[1:]) if "ǁ" in name else name.removeprefix("x_")
