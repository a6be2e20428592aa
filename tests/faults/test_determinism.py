"""The same input gives the same bytes, whatever the hash seed and the number of threads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from robustness.model_generator import grow

PLACES = [
    {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
    {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "2"},
    {"PYTHONHASHSEED": "4711", "OMP_NUM_THREADS": "4", "TZ": "Asia/Tokyo", "LC_ALL": "C"},
]

FOLD_ALL = """
import sys
from pathlib import Path
from convbn.cli import main
for path in sorted(Path('in').glob('*.onnx')):
    assert main(['fuse', str(path), '-o', sys.argv[1] + '/' + path.name, '--no-verify', '--quiet',
                 '--external-data', 'always' if path.stem.endswith('7') else 'auto']) == 0
"""

FOLD_A_NETWORK = """
import sys, torch, convbn
torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, bias=False),
    torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(128, 4), torch.nn.BatchNorm1d(4)).eval()
x = torch.ones(2, 3, 8, 8)
folded = convbn.fuse(net, (x,))
convbn.save_fused(net, folded, sys.argv[1] + '/net.safetensors')
half = convbn.fuse(net.half(), (x.half(),), options=convbn.FuseOptions(verify=False))
convbn.save_fused(net, half, sys.argv[1] + '/half.safetensors')
"""


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def in_each_place(code: str, folder: Path) -> list[dict[str, str]]:
    found = []
    for number, place in enumerate(PLACES):
        out = folder / f"out{number}"
        out.mkdir()
        subprocess.run(
            [sys.executable, "-c", code, out.name],
            cwd=folder,
            env={**os.environ, **place},
            check=True,
            timeout=600,
        )
        found.append(digests(out))
    return found


def test_onnx_files_are_byte_identical(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = []
    for seed in range(60):
        specimen = grow(seed)
        if specimen.data is None:
            names.append(f"{seed}.onnx")
            onnx.save(specimen.model, tmp_path / "in" / names[-1])
    first, *others = in_each_place(FOLD_ALL, tmp_path)
    assert set(names) <= set(first)
    assert others == [first, first]


@pytest.mark.slow
def test_checkpoints_are_byte_identical(tmp_path: Path) -> None:
    first, *others = in_each_place(FOLD_A_NETWORK, tmp_path)
    assert set(first) == {"net.safetensors", "half.safetensors"}
    assert others == [first, first]
