"""The tree that mutmut works in: ``src/convbn`` as it is installed, the tests and tools, and mutmut's settings.

The rooms stand at the top of the repository and are imported below ``convbn``
(docs/decisions/0001-rooms-and-packages.md); mutmut takes a module's name from its path, so in this tree
they lie where they are imported from.
"""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from dataclasses import dataclass
from glob import glob
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Part:
    """Code that is changed, and the tests that are given every change.

    Attributes:
        folders: below ``src/convbn``.
        typed: what mypy is given; what it refuses is not given to the tests.
        tests: as pytest takes them.
    """

    folders: tuple[str, ...]
    typed: str
    tests: tuple[str, ...]


#: The arithmetic, the rules and the plan; and what judges them.
PARTS = {
    "fold": Part(
        ("fuse/algebra", "fuse/operators", "fuse/plan"),
        "src/convbn/fuse",
        # mutmut's wrappers triple the depth of the stack: a stream of three hundred blocks would not fit.
        (
            "tests/fuse",
            "tests/faults/test_bound.py",
            "--ignore=tests/fuse/torch",
            "-k",
            "not three_hundred_blocks",
        ),
    ),
    "proof": Part(
        ("bench/proof",),
        "src/convbn/bench/proof",
        # Three of the seven wrong algebras, and nothing of what stands around the proof: a change that survives is
        # given to every test.
        (
            "tests/bench/proof",
            "tests/export/test_precision_mending.py",
            "--ignore=tests/bench/proof/test_exported.py",
            "--ignore=tests/bench/proof/test_saturation.py",
            "-m",
            "not slow",
            "-k",
            "not (mean] or lost] or doubled] or rolled])",
        ),
    ),
}

READERS = re.compile(rb"^(def (?:\w+\(call: (?:OnnxCall|AtenCall)|_(?:aten|onnx)\().*:)$", re.MULTILINE)
"""What reads ONNX's and PyTorch's calls is held by tests that are not run here, and tables are made once, on import."""
ELSEWHERE = re.compile(rb"^(def (?:main|_run|_silence|_no_core_dump)\(.*:)$", re.MULTILINE)
"""Of the first run of a model, what another process does: mutmut does not see that a test comes to it."""

SETTINGS = """\
[tool.mutmut]
source_paths = ["src/"]
also_copy = ["tools/"]
only_mutate = {mutated}
do_not_mutate = ["src/convbn/fuse/operators/calls.py", "src/convbn/fuse/operators/registry.py"]
# Why something is refused is held by tests/fuse/test_refusals.py; its wording is not a result.
do_not_mutate_patterns = ['^\\s*return Refusal\\(']
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "no:cov", "-p", "mutation.cheapest_first"]
type_check_command = {types}
use_git_change_detection = false
timeout_multiplier = 2.0
timeout_constant = 30.0

[tool.mypy]
strict = true
mypy_path = "src"
# Copies of one function beside each other set these off, whatever a copy changes.
warn_unused_ignores = false
disable_error_code = ["no-redef", "has-type"]

[[tool.mypy.overrides]]
module = {untyped}
ignore_missing_imports = true
follow_imports = "skip"

[tool.pytest.ini_options]
pythonpath = ["tests", "tools"]
addopts = "-q --strict-markers --import-mode=importlib"
markers = {markers}
"""


def stage(part: Part, folder: Path, *, keep: bool = False) -> None:
    """Make the tree in ``folder``, or bring one up to date.

    Args:
        part: what is changed in it.
        folder: what mutmut left there goes, unless it is kept.
        keep: files that are as they were stay untouched, so mutmut takes only functions that changed again.
    """
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    # The rooms are links below src/convbn: followed, they become folders.
    for name in ("src/convbn", "tests", "tools"):
        for source in sorted(Path(path) for path in glob(f"{ROOT / name}/**/*", recursive=True)):
            target = folder / source.relative_to(ROOT)
            if source.is_dir() or "__pycache__" in source.parts:
                continue
            text = source.read_bytes()
            unseen = READERS if source.parent.name == "operators" else ELSEWHERE
            if unseen is READERS or source.name == "first_run.py":
                text = unseen.sub(rb"\1  # pragma: no mutate block", text)
            if not target.exists() or target.read_bytes() != text:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(text)
    # On the path from the start (environment); Python takes a folder that was missing then for missing later on.
    for name in ("src", "tests", "tools"):
        (folder / "mutants" / name).mkdir(parents=True, exist_ok=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    settings = SETTINGS.format(
        mutated=[f"src/convbn/{name}/*.py" for name in part.folders],
        tests=list(part.tests),
        types=["mypy", "--output=json", part.typed],
        untyped=project["mypy"]["overrides"][0]["module"],
        markers=project["pytest"]["ini_options"]["markers"],
    )
    (folder / "pyproject.toml").write_text(settings)


def environment(folder: Path) -> dict[str, str]:
    """The variables under which mutmut and the tests find the changed code before the installed one."""
    changed = folder.resolve() / "mutants"
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(changed / name) for name in ("src", "tests", "tools")),
        "OMP_NUM_THREADS": "1",
    }
