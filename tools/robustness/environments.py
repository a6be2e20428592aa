"""Smoke tests in fresh virtual environments: the lowest supported versions, the newest, the core alone.

    python tools/robustness/environments.py build/environments [NAME ...] [--markdown docs/environments.md]

Needs a package index, and some 12 GB of disk where PyTorch comes with CUDA.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

SMOKE = """
import sys
from pathlib import Path
import onnx
from convbn.cli import main
from robustness.model_generator import grow
folder = Path(sys.argv[1])
for seed in range(24):
    specimen = grow(seed)
    (folder / 'weights.bin').write_bytes(specimen.data or b'')
    (folder / 'in.onnx').write_bytes(specimen.model.SerializeToString())
    place, out = str(folder / 'in.onnx'), str(folder / 'out.onnx')
    for command in (['inspect', place], ['fuse', place, '-o', out, '--force'], ['verify', place, out]):
        code = main([*command, '--quiet'])
        assert code == 0, (seed, command, code)
"""

SMOKE_TORCH = """
import torch, convbn
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
x = torch.randn(2, 3, 8, 8)
result = convbn.fuse(net, (x,))
assert result.report.batchnorm.after == 0 and result.report.verify['status'] == 'equal'
convbn.export_onnx(net, x)
"""

PAGE = """\
# Where it was tried

Written by `make environments`: each row is a fresh virtual environment with the lowest or the newest versions
that pyproject.toml allows. In it `pip check` and `convbn doctor` pass, 24 grown models go through `inspect`, `fuse`
and `verify`, and with PyTorch a module is folded, proved and exported to ONNX. Those called `gpu-…` have nothing of
convbn and no onnx-graphsurgeon: the source tree rehearses the program for a GPU (`tools/gpu`) on the CPU.

"""


@dataclass(frozen=True)
class Environment:
    """What is installed, and whether PyTorch is in it.

    Attributes:
        name: of the folder.
        requirements: for pip.
        torch: whether the PyTorch part is tried as well.
        source: the source tree is used as it lies there, and rehearses the program for a GPU.
    """

    name: str
    requirements: tuple[str, ...]
    torch: bool = False
    source: bool = False


def environments() -> list[Environment]:
    """By the bounds of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = tuple(project["dependencies"])
    both = (*core, *project["optional-dependencies"]["torch"])
    return [
        Environment("core-lowest", lowest(core)),
        Environment("core-newest", core),
        Environment("torch-lowest", lowest(both), torch=True),
        Environment("torch-newest", both, torch=True),
        # What a GPU machine without a network has: no onnx-graphsurgeon, and nothing of convbn installed.
        *(
            Environment(f"gpu-{version}", (f"torch=={version}", "numpy", "onnx", "onnxruntime"), source=True)
            for version in ("2.11.0", "2.13.0")
        ),
    ]


def lowest(requirements: Sequence[str]) -> tuple[str, ...]:
    """Each requirement at its lower bound."""
    return tuple(re.sub(r">=([\d.]+).*", r"==\1", one) for one in requirements)


def main() -> int:
    """Make, try, and say in a table; 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="only these environments")
    parser.add_argument("--markdown", type=Path, help="a page for the table")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    wheel = built(options.folder.resolve())
    rows = []
    for environment in environments():
        if not options.names or environment.name in options.names:
            rows.append((environment.name, *tried(environment, wheel, options.folder.resolve())))
            print(f"{rows[-1][0]}: {rows[-1][1]}", flush=True)
    table = "| environment | outcome | versions |\n|---|---|---|\n"
    table += "".join(f"| {' | '.join(row)} |\n" for row in rows)
    print(f"\n{table}")
    if options.markdown is not None:
        options.markdown.write_text(PAGE + table)
    return 0 if all(outcome == "works" for _, outcome, _ in rows) else 1


def built(folder: Path) -> Path:
    """The wheel, built from a copy: building leaves files in the source."""
    copy = folder / "source"
    shutil.rmtree(copy, ignore_errors=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\0"
    ):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder / "wheel", copy]
    subprocess.run(command, check=True)
    return max((folder / "wheel").glob("convbn-*.whl"), key=lambda path: path.stat().st_mtime)


def tried(environment: Environment, wheel: Path, folder: Path) -> tuple[str, str]:
    """Outcome and versions."""
    place = folder / environment.name
    venv.create(place, with_pip=True, clear=True)
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    (place / "models").mkdir()
    install = ("pip install", [python, "-m", "pip", "install", "-q", *environment.requirements])
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "tools"), "OMP_NUM_THREADS": "1"}
    if environment.source:
        program = [python, ROOT / "tools" / "gpu" / "measure.py", place / "out", "--rehearse"]
        steps = [
            install,
            ("pip check", [python, "-m", "pip", "check"]),
            ("rehearsal", [*program, "--most", "1"]),
        ]
        variables["PYTHONPATH"] = str(ROOT / "src")
    else:
        scripts = [SMOKE, *([SMOKE_TORCH] if environment.torch else [])]
        convbn = [python, "-m", "pip", "install", "-q", "--force-reinstall", "--no-deps", wheel]
        steps = [
            install,
            ("pip install convbn", convbn),
            ("pip check", [python, "-m", "pip", "check"]),
            ("doctor", [python, "-m", "convbn", "doctor"]),
            *(("smoke", [python, "-c", script, place / "models"]) for script in scripts),
        ]
    outcome = "works"
    for name, command in steps:
        done = subprocess.run(
            command, cwd=place, env=variables, capture_output=True, text=True, timeout=1800, check=False
        )
        if done.returncode != 0:
            (place / "failed.log").write_text(done.stdout + done.stderr)
            told = (done.stderr.strip() or done.stdout.strip() or "?").splitlines()[-1]
            outcome = f"{name} failed: {told[:200]}"
            break
    frozen = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=False
    ).stdout.split()
    wanted = {plain(re.split(r"[^\w-]", one)[0]) for one in environment.requirements} | {"protobuf"}
    shown = [one.replace("==", " ") for one in frozen if plain(one.split("==")[0]) in wanted]
    return outcome.replace("|", "/"), ", ".join([f"Python {sys.version.split()[0]}", *shown])


def plain(name: str) -> str:
    """A distribution's name as the index compares it."""
    return name.lower().replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())
