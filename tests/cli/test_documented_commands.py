"""Every command of the README and the documents is run as it is written, in a folder that holds the files it names."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from support.graphs import batchnorm, batchnorm_parameters, model, random
from support.networks import torchvision_models

from convbn.export.formats import FORMATS, format_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(?:sh|bash|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
CELL = re.compile(r"^\|.*\| `(convbn [^`]+)` \|$", re.MULTILINE)
COMMAND = re.compile(r"^(?:[A-Z_]+=\S+ )*convbn ")
#: Commands that nothing here can run, and why.
ELSEWHERE = {
    "hf-hub:": "a hub is out of reach",
    "s3://": "a bucket is out of reach",
    " ray://": "no cluster",
    "--ray auto": "no cluster",
    ".ctx.onnx": "no execution provider compiles here",
    ".pte": "an extra of its own; tests/export/test_packages.py makes one of a small network",
    ".aoti.pt2": "minutes of a compiler; tests/export/test_packages.py makes one of a small network",
}
#: The overview of docs/cli.md: IN, OUT and VERB stand for something.
FORM = re.compile(r"\b(A B|IN|OUT|VERB|RESULT|DIR|BEFORE|PAGE|PLAN)\b|…|\.\.\.")


def commands(page: Path) -> list[str]:
    """The commands in the page's fenced blocks and last columns, continued lines joined and comments gone."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in (*BLOCK.findall(text), *CELL.findall(text)):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.split("  # ")[0].split(" # ")[0].strip().removeprefix("$ ")
            if COMMAND.match(command) and not FORM.search(command):
                found.append(" ".join(command.split()))
    return found


def test_commands_are_found() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 20
    assert "convbn inspect model.onnx" in commands(ROOT / "README.md")


def test_each_kind_of_output_has_a_command_in_the_readme() -> None:
    calls = [shlex.split(call) for call in CELL.findall((ROOT / "README.md").read_text(encoding="utf-8"))]
    exported = {format_of(words[words.index("-o") + 1]).name for words in calls if "export" in words}
    assert exported == {row.name for row in FORMATS if "export" in row.verbs}


def network(batch: int | str, size: int, seed: int = 0) -> onnx.ModelProto:
    """Two convolutions with their BatchNorms and a head that ends in a softmax."""
    weights = {
        "w1": random(8, 3, 3, 3, seed=seed),
        "w2": random(8, 8, 3, 3, seed=1) / 8,
        "w3": random(8, 10, seed=2),
        **batchnorm_parameters(8, prefix="bn1"),
        **batchnorm_parameters(8, prefix="bn2", seed=1),
    }
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "w1"], ["c1"], name="conv1", strides=[2, 2]),
        batchnorm("c1", "n1", prefix="bn1"),
        make("Relu", ["n1"], ["r1"], name="relu1"),
        make("Conv", ["r1", "w2"], ["c2"], name="conv2", strides=[2, 2]),
        batchnorm("c2", "n2", prefix="bn2"),
        make("Relu", ["n2"], ["r2"], name="relu2"),
        make("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        make("Flatten", ["p"], ["f"], name="flatten"),
        make("MatMul", ["f", "w3"], ["logits"], name="/head/linear"),
        make("Softmax", ["logits"], ["y"], name="/head/softmax"),
    ]
    return model(nodes, {"x": [batch, 3, size, size]}, ["y"], weights)


def convbn(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command by the shell's rules, in the folder, with this interpreter's convbn."""
    environment = dict(os.environ)
    words = shlex.split(command)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = os.pathsep.join(filter(None, [value, environment.get(name, "")]))
    if "torchvision:" in command:
        # torchvision's own operators are not built here; stand-ins have their names.
        (folder / "named").mkdir(exist_ok=True)
        (folder / "named" / "sitecustomize.py").write_text(
            "from support.networks import torchvision_models\ntorchvision_models()\n"
        )
        given = environment.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = os.pathsep.join([str(folder / "named"), str(ROOT / "tests"), given])
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=560,
    )


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the documents speak of."""
    folder = tmp_path_factory.mktemp("documents")
    onnx.save(network(1, 224), folder / "model.onnx")
    onnx.save(network(1, 224, seed=9), folder / "new.onnx")  # of the same architecture
    (folder / "models").mkdir()
    for name in ("one", "two"):
        onnx.save(network(1, 224), folder / "models" / f"{name}.onnx")
    (folder / "plan.toml").write_text(
        'output = "planned"\n[[models]]\npath = "models/*.onnx"\n[[targets]]\nkind = "onnx"\n'
    )
    torch.manual_seed(0)
    torch.save(torchvision_models().resnet50().state_dict(), folder / "r50.pth")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()
    torch.export.save(torch.export.export(module, (torch.randn(1, 3, 8, 8),)), folder / "model.pt2")
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        pixels = generator.integers(0, 256, (240, 260, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    np.savez(folder / "samples.npz", x=generator.standard_normal((2, 3, 224, 224)).astype(np.float32))
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "build" / "demo").mkdir(parents=True)
    sys.path.insert(0, str(ROOT / "examples" / "digits"))
    from network import digits_resnet

    torch.save(digits_resnet().state_dict(), folder / "build" / "demo" / "digits.pth")
    quick = "--runtime onnxruntime-cpu --budget 2"
    assert convbn(f"convbn bench model.onnx {quick} --json last.json", folder).returncode == 0
    (folder / "results").mkdir()
    for name in ("before.json", "after.json", "results/1.json", "results/2.json"):
        shutil.copyfile(folder / "last.json", folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_commands_run_as_written(page: Path, filled: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(filled, tmp_path / "here")
    if page.name == "tensorrt.md":
        onnx.save(network("N", 224), folder / "model.onnx")
    for command in commands(page):
        if any(mark in command for mark in ELSEWHERE):
            continue
        done = convbn(command, folder)
        # A gate on time may fail on any machine; that it was judged is what is seen here.
        good = {0, 1} if "--fail-if" in command or "--baseline" in command or "compare" in command else {0}
        assert done.returncode in good, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
