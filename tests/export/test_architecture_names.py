from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from convbn.errors import BadInputError, NotSupportedError, UsageError
from convbn.export.checkpoints.architectures import build_module, parse_arguments

torch = pytest.importorskip("torch")


def test_arguments():
    texts = ["a=1", "b=[1, 2]", "c=True", "d=relu", "e=", "f=a=b", "g=__import__('os')", "h='1'"]
    assert parse_arguments(texts) == {
        "a": 1, "b": [1, 2], "c": True, "d": "relu", "e": "", "f": "a=b", "g": "__import__('os')", "h": "1",
    }  # fmt: skip
    for bad in (["a"], ["=1"], ["a b=1"], ["a=1", "a=2"]):
        with pytest.raises(UsageError):
            parse_arguments(bad)


@pytest.mark.parametrize("spec", ["", "resnet18", ":x", "timm:", "pkg mod:f", "os:path.join()"])
def test_nonsense(spec):
    with pytest.raises(UsageError):
        build_module(spec)


def test_import_path():
    module = build_module("torch.nn:Conv2d", {"in_channels": 3, "out_channels": 4, "kernel_size": 3})
    assert isinstance(module, torch.nn.Conv2d)
    with pytest.raises(BadInputError, match="did you mean Conv2d"):
        build_module("torch.nn:Conv2")
    with pytest.raises(BadInputError, match="cannot be built: TypeError"):
        build_module("torch.nn:Conv2d", {"nope": 3})
    with pytest.raises(BadInputError, match="gives a dict, not"):
        build_module("builtins:dict")
    with pytest.raises(BadInputError, match="no module 'nowhere_to_be_found'"):
        build_module("nowhere_to_be_found:f")
    with pytest.raises(BadInputError, match="neither callable"):
        build_module("math:pi")


def test_current_folder_only_when_asked(tmp_path, monkeypatch):
    (tmp_path / "my_own_net.py").write_text(
        "import torch\ndef net(n=1):\n    return torch.nn.Linear(n, n)\nready = net(2)\n"
    )
    (tmp_path / "my_broken_net.py").write_text("1/0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    with pytest.raises(
        BadInputError, match="no module 'my_own_net'; it lies in the current folder, which --al"
    ):
        build_module("my_own_net:net")
    importlib.invalidate_caches()
    assert build_module("my_own_net:net", {"n": 5}, allow_cwd=True).in_features == 5
    assert build_module("my_own_net:ready").in_features == 2
    with pytest.raises(UsageError, match="takes no arguments"):
        build_module("my_own_net:ready", {"n": 1})
    with pytest.raises(BadInputError, match="its import fails: ZeroDivisionError"):
        build_module("my_broken_net:f")


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:resnet18"])
def test_broken_torchvision_is_explained(spec):
    # In a process of its own: another test may have mended torchvision in this one.
    if importlib.util.find_spec("torchvision") is None or importlib.util.find_spec("timm") is None:
        pytest.skip("needs torchvision and timm")
    code = (
        "import sys\n"
        "try:\n    import torchvision\nexcept RuntimeError:\n    broken = True\nelse:\n    sys.exit(77)\n"
        "from convbn.errors import NotSupportedError\n"
        "from convbn.export.checkpoints.architectures import build_module\n"
        "for name in [n for n in sys.modules if n.startswith('torchvision')]: del sys.modules[name]\n"
        "try:\n    build_module(sys.argv[1])\nexcept NotSupportedError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, spec], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("torchvision works here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "the installed torchvision was built for another torch" in done.stdout
    assert "pip install --force-reinstall --no-deps torchvision" in done.stdout


def test_missing_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NotSupportedError, match="timm is not installed; pip install timm"):
        build_module("timm:resnet18")


def test_torchvision(working_torchvision, monkeypatch):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("a download"))
    assert build_module("torchvision:resnet18", {"num_classes": 7}).fc.out_features == 7
    build_module("torchvision:lraspp_mobilenet_v3_large")  # would fetch its backbone by default
    with pytest.raises(BadInputError, match=r"knows no 'resnet19'; did you mean .*resnet18"):
        build_module("torchvision:resnet19")
    with pytest.raises(UsageError, match="'weights' would fetch"):
        build_module("torchvision:resnet18", {"weights": "DEFAULT"})


def test_timm(working_torchvision):
    pytest.importorskip("timm")
    assert build_module("timm:resnet18", {"num_classes": 7}).fc.out_features == 7
    for name in ("resnet19", "hf-hub:timm/resnet18", "hf_hub:timm/resnet18.a1_in1k", "local-dir:/tmp/x"):
        with pytest.raises(BadInputError, match="knows no"):
            build_module(f"timm:{name}")
    with pytest.raises(UsageError, match="'pretrained' would fetch"):
        build_module("timm:resnet18", {"pretrained": True})
