"""torchvision in tests and tools, beside a torch that it was built for and beside one that it was not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SUPPORT = Path(__file__).parents[1]


def test_a_torchvision_with_its_own_operators_is_left_to_define_them(tmp_path: Path) -> None:
    """Real ones do so in C++, where a second definition ends the process; this one does it in Python."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "models.py").touch()
    (package / "_meta_registrations.py").write_text('@torch.library.register_fake("torchvision::nms")\n')
    (package / "__init__.py").write_text(
        "import torch\n"
        "LIBRARY = torch.library.Library('torchvision', 'DEF')\n"
        "LIBRARY.define('nms(Tensor boxes, Tensor scores, float threshold) -> Tensor')\n"
    )
    code = (
        "from support.networks import torchvision_models; torchvision_models(); torchvision_models(); import torch;"
        "print(torch.ops.torchvision.nms.default._schema)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{tmp_path}:{SUPPORT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "scores" in done.stdout


def test_it_is_said_where_there_is_none(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None\n"
        "from support.networks import torchvision_models\n"
        "try:\n    torchvision_models()\nexcept ModuleNotFoundError:\n    sys.exit(7)"
    )
    environment = {"PYTHONPATH": str(SUPPORT), "PATH": "/usr/bin:/bin"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 7
