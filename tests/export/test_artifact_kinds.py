from __future__ import annotations

import os
import pickle
import random
import struct
import subprocess
import sys
import zipfile

import pytest

from convbn.errors import BadInputError, ConvBNError, FileAccessError
from convbn.export.checkpoints.pickle_scan import code_globals
from convbn.export.files.sniff import ArtifactKind, sniff

torch = pytest.importorskip("torch")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.fixture(scope="module")
def module():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).eval()


def write(path, data: bytes):
    path.write_bytes(data)
    return path


def test_torch_files(tmp_path, module):
    path = tmp_path / "lies.onnx"
    for legacy in (False, True):
        torch.save(module.state_dict(), path, _use_new_zipfile_serialization=not legacy)
        assert sniff(path) is ArtifactKind.STATE_DICT
        torch.save({"epoch": 3, "best": 0.5, "model": module.state_dict()}, path)
        assert sniff(path) is ArtifactKind.STATE_DICT
        torch.save(module, path, _use_new_zipfile_serialization=not legacy)
        assert sniff(path) is ArtifactKind.PICKLED
    types = (torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.float64, torch.float8_e4m3fn)
    torch.save({str(t): torch.nn.Parameter(torch.zeros(2), False).to(t) for t in types}, path)
    assert sniff(path) is ArtifactKind.STATE_DICT


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_code_is_seen_and_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(2), "x": Evil()}, "a.pth", pickle_protocol=protocol)
    assert sniff("a.pth") is ArtifactKind.PICKLED
    write(tmp_path / "b.pkl", pickle.dumps(Evil(), protocol=protocol))
    assert sniff("b.pkl") is ArtifactKind.PICKLED
    assert not (tmp_path / "pwned").exists()


def test_names_are_right_where_the_pickle_abbreviates(tmp_path):
    # From protocol 4 on, a module's name that comes again is fetched from the memo.
    class Two:
        def __reduce__(self):
            return os.mkdir, (Three(),)

    class Three:
        def __reduce__(self):
            return os.rmdir, ("x",)

    for protocol in (2, 4, 5):
        path = write(tmp_path / "a.pkl", pickle.dumps(Two(), protocol=protocol))
        with path.open("rb") as file:
            assert code_globals(file) == [f"{os.name}.mkdir", f"{os.name}.rmdir"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript, which is why it is told apart
def test_archives(tmp_path, module):
    torch.export.save(torch.export.export(module, (torch.zeros(1, 3, 8, 8),)), tmp_path / "a.pt2")
    assert sniff(tmp_path / "a.pt2") is ArtifactKind.PT2
    torch.jit.trace(module, torch.zeros(1, 3, 8, 8)).save(tmp_path / "a.pt")
    assert sniff(tmp_path / "a.pt") is ArtifactKind.TORCHSCRIPT
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(BadInputError, match=r"zip archive of another kind: it holds readme\.txt"):
        sniff(tmp_path / "a.zip")


def test_other_kinds(tmp_path, saved):
    assert sniff(saved) is ArtifactKind.ONNX
    header = b'{"__metadata__":{}}'
    assert sniff(write(tmp_path / "s", struct.pack("<Q", len(header)) + header)) is ArtifactKind.SAFETENSORS
    for magic in (b"vtrt", b"ftrt", b"ptrt"):
        assert sniff(write(tmp_path / "e", magic + bytes(60))) is ArtifactKind.ENGINE


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "is empty"),
        (b"hello, world", "is no model file: it begins with 68 65 6c"),
        (b"\x80", "is no model file"),
        (b"\x80\x02garbage", "damaged pickle"),
        (b"PK\x03\x04 cut short", "damaged zip archive"),
        (struct.pack("<Q", 1 << 40) + b"{}", "safetensors file cut short"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x08\x08", "is no model file"),  # a ModelProto without a graph
    ],
)
def test_what_is_no_model(tmp_path, data, told):
    with pytest.raises(BadInputError, match=told) as error:
        sniff(write(tmp_path / "a", data))
    assert str(error.value).startswith(str(tmp_path / "a"))
    assert "\n" not in str(error.value)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, told in (
        (tmp_path, "folder"),
        (tmp_path / "no", "does not exist"),
        (tmp_path / "pipe", "pipe"),
    ):
        with pytest.raises(FileAccessError, match=told):
            sniff(path)


def test_cut_short(tmp_path, saved, module):
    torch.save(module.state_dict(), tmp_path / "s.pth")
    for path in (saved, tmp_path / "s.pth"):
        data = path.read_bytes()
        for share in (0.5, 0.9):
            with pytest.raises(BadInputError):
                sniff(write(tmp_path / "cut", data[: int(len(data) * share)]))
        with pytest.raises(BadInputError, match="cut short"):
            sniff(write(tmp_path / "cut", data[:-1]))


def test_noise_gives_only_typed_errors(tmp_path, saved, module):
    generator = random.Random(0)
    torch.save(module.state_dict(), tmp_path / "s.pth")
    messages = []
    seeds = [saved.read_bytes(), (tmp_path / "s.pth").read_bytes()]
    for turn in range(300):
        data = bytearray(seeds[turn % 2]) if turn % 3 else bytearray(generator.randbytes(200))
        for _ in range(8):
            data[generator.randrange(len(data) if turn % 5 else 100)] ^= 1 << generator.randrange(8)
        try:
            kind = sniff(write(tmp_path / "noise", bytes(data)))
        except ConvBNError as error:
            messages.append(str(error))
        else:
            assert turn % 3, f"noise passes for {kind}"
    assert len(messages) > 100
    assert "\n" not in "".join(messages)


def test_neither_torch_nor_onnx_is_imported(saved):
    code = (
        "import sys\nfrom convbn.export.files.sniff import sniff\nsniff(sys.argv[1])\n"
        "assert not {'torch', 'onnx', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, saved], check=True)
