"""Files that bring code: it does not run without trust, and each test shows that it would with it."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest

from convbn.errors import BadInputError, ConvBNError
from convbn.export.checkpoints.limits import Limits, check_archive
from convbn.export.checkpoints.load import load_state
from convbn.export.checkpoints.trusted import load_pickled, load_program, load_script

torch = pytest.importorskip("torch")
LIMITS = Limits()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


class Writer(torch.nn.Module):
    """TorchScript whose loading writes a file."""

    def __init__(self):
        super().__init__()
        self.training = False
        self.table = torch.zeros(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table

    @torch.jit.export
    def __getstate__(self) -> tuple[bool, int]:
        return (self.training, 1)

    @torch.jit.export
    def __setstate__(self, state: tuple[bool, int]) -> None:
        self.training = state[0]
        self.table = torch.from_file("pwned", True, 4).fill_(7)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()


def program():
    return torch.export.export(net(), (torch.zeros(1, 3, 8, 8),), strict=False)


def rewritten(source: str, target: str, change) -> None:
    """The archive with ``change(name, data)`` in the place of each member."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)), zipfile.ZIP_STORED)


def hostile_program() -> None:
    torch.export.save(program(), "good.pt2")
    torch.save(Evil(), "evil.pth")

    def change(name: str, data: bytes) -> bytes:
        if name.endswith("model_weights_config.json"):
            config = json.loads(data)
            first = next(entry for entry in config["config"].values() if entry["path_name"] == "weight_0")
            first["use_pickle"] = True
            return json.dumps(config).encode()
        return Path("evil.pth").read_bytes() if name.endswith("weights/weight_0") else data

    rewritten("good.pt2", "evil.pt2", change)


def hostile_script() -> None:
    torch.jit.script(Writer()).save("evil.pt")


def test_a_program_with_code():
    hostile_program()
    with pytest.raises(
        BadInputError, match=r"may run code; it needs \w+\.mkdir; .*--trust-checkpoint"
    ) as error:
        load_program("evil.pt2", trust=False, limits=LIMITS)
    assert "\n" not in str(error.value)
    assert not Path("pwned").exists()
    with pytest.raises(BadInputError, match="may be damaged"):
        load_program("evil.pt2", trust=True, limits=LIMITS)  # a folder is no weight
    assert Path("pwned").exists()


def test_torchscript_with_code():
    hostile_script()
    with pytest.raises(BadInputError, match=r"brings code of its own.*--trust-checkpoint"):
        load_script("evil.pt", trust=False, limits=LIMITS)
    with pytest.raises(BadInputError, match="brings code of its own"):
        load_state("evil.pt")
    assert not Path("pwned").exists()
    load_script("evil.pt", trust=True, limits=LIMITS)
    assert Path("pwned").exists()


def test_a_pickle_in_a_torchscript_archive_is_listed():
    torch.jit.script(net()).save("good.pt")
    evil = pickle.dumps(Evil(), protocol=2)
    rewritten("good.pt", "evil.pt", lambda name, data: evil if name.endswith("data.pkl") else data)
    with pytest.raises(BadInputError, match=r"it needs \w+\.mkdir"):
        load_script("evil.pt", trust=False, limits=LIMITS)
    with pytest.raises(BadInputError):
        load_script("evil.pt", trust=True, limits=LIMITS)
    assert not Path("pwned").exists()


def test_a_pickled_module_with_code():
    module = net()
    module.extra = Evil()
    torch.save(module, "evil.pth")
    with pytest.raises(BadInputError, match="would run code"):
        load_pickled("evil.pth", trust=False, limits=LIMITS)
    assert not Path("pwned").exists()
    assert isinstance(load_pickled("evil.pth", trust=True, limits=LIMITS), torch.nn.Module)
    assert Path("pwned").exists()


def test_damage_is_no_way_around_the_restricted_loader(monkeypatch):
    """Whatever the restricted loader raises, nobody tries the other one."""
    torch.save({"w": torch.zeros(2)}, "a.pth")
    calls = []
    real = torch.load

    def watched(*args, **options):
        calls.append(options["weights_only"])
        real(*args, **options)
        raise RuntimeError("broken")

    monkeypatch.setattr(torch, "load", watched)
    with pytest.raises(BadInputError, match="damaged: broken"):
        load_state("a.pth", trust=True)
    assert calls == [True]


def test_good_files_load_with_trust():
    torch.export.save(program(), "good.pt2")
    loaded = load_program("good.pt2", trust=True, limits=LIMITS)
    assert torch.equal(loaded.state_dict["0.weight"], net()[0].weight)
    torch.jit.script(net()).save("good.pt")
    state = load_state("good.pt", trust=True).tensors
    assert all(torch.equal(state[name], tensor) for name, tensor in net().state_dict().items())
    with pytest.raises(BadInputError, match=r"torch\.export archive, whose pickles torch loads without"):
        load_program("good.pt2", trust=False, limits=LIMITS)


@pytest.mark.parametrize("kind", ["pt2", "pt", "pth"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_cut_short(kind, share):
    if kind == "pt2":
        torch.export.save(program(), "a")
    elif kind == "pt":
        torch.jit.script(net()).save("a")
    else:
        torch.save(net(), "a")
    data = Path("a").read_bytes()
    Path("a").write_bytes(data[: int(len(data) * share)])
    loader = {"pt2": load_program, "pt": load_script, "pth": load_pickled}[kind]
    with pytest.raises(ConvBNError) as error:
        loader("a", trust=True, limits=LIMITS)
    assert "\n" not in str(error.value)
    with pytest.raises(ConvBNError):
        load_state("a", trust=True)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + bytes(40), bytes(range(256)) * 9])
def test_random_bytes(data):
    Path("a").write_bytes(data)
    for loader in (load_program, load_script, load_pickled):
        with pytest.raises(ConvBNError) as error:
            loader("a", trust=True, limits=LIMITS)
        assert "\n" not in str(error.value)


def test_a_class_that_is_not_there():
    Path("gone.py").write_text("class Net:\n    pass\n")
    import sys

    sys.path.append(os.getcwd())
    import gone

    torch.save(gone.Net(), "a.pth")
    sys.path.remove(os.getcwd())
    del sys.modules["gone"]
    with pytest.raises(BadInputError, match="needs the module 'gone'"):
        load_pickled("a.pth", trust=True, limits=LIMITS)


def test_members_that_overlap_are_counted():
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a/big", bytes(1 << 20))
        for index in range(8):  # the directory names the same bytes again and again
            info = zipfile.ZipInfo(f"a/{index}")
            for name in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(info, name, getattr(archive.getinfo("a/big"), name))
            archive.filelist.append(info)
    assert not check_archive("a.zip", Limits(unpacked_mib=8))
    with pytest.raises(BadInputError, match="members that overlap and would unpack to 7 MiB"):
        check_archive("a.zip", Limits(unpacked_mib=6))
