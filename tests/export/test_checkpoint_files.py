from __future__ import annotations

import os
import pickle
import random
import resource
import zipfile
import zlib
from collections import OrderedDict

import pytest

from convbn.errors import BadInputError, ConvBNError, FileAccessError, UsageError
from convbn.export.checkpoints.limits import Limits
from convbn.export.checkpoints.load import Checkpoint, apply_state, load_state
from convbn.export.torch.save import save_program, save_tensors

torch = pytest.importorskip("torch")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def net(width: int = 4, seed: int = 0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.BatchNorm2d(width)).eval()


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def renamed(prefix: str) -> dict:
    return {prefix + key: value for key, value in net().state_dict().items()}


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dict(tmp_path, legacy):
    torch.save(net().state_dict(), tmp_path / "a.bin", _use_new_zipfile_serialization=not legacy)
    checkpoint = load_state(tmp_path / "a.bin")
    assert same(checkpoint.tensors, net().state_dict())
    assert checkpoint.notes == ()


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "model_ema", "ema"])
def test_wrappers_and_prefixes_are_noted(tmp_path, key):
    torch.save({"epoch": 3, key: OrderedDict(renamed("module._orig_mod."))}, tmp_path / "a.pth")
    checkpoint = load_state(tmp_path / "a.pth")
    module = net(seed=1)
    notes = apply_state(module, checkpoint)
    assert same(module.state_dict(), net().state_dict())
    assert [note.split(" ")[0] for note in checkpoint.notes + notes] == ["Took", "Removed", "Removed"]
    assert repr(key) in checkpoint.notes[0]
    assert "'module.'" in notes[0]


def test_what_was_not_taken_is_noted(tmp_path):
    torch.save({"state_dict": renamed(""), "model_ema": renamed(""), "epoch": 1}, tmp_path / "a.pth")
    assert "not model_ema" in load_state(tmp_path / "a.pth").notes[0]
    torch.save({**renamed(""), "step": 7}, tmp_path / "b.pth")
    assert load_state(tmp_path / "b.pth").notes == ("Left out what is no tensor: step.",)


def test_what_stands_beside_a_wrapped_module_is_unexpected():
    state = {**renamed("module."), "head": torch.zeros(1)}
    with pytest.raises(BadInputError, match=r"1 unexpected: head; .*--drop-unexpected"):
        apply_state(net(), Checkpoint(state))


@pytest.mark.parametrize("prefix", ["module", "model", "_orig_mod"])
def test_a_prefix_that_the_module_has_is_kept(prefix):
    outer = torch.nn.Module()
    outer.add_module(prefix, net(seed=1))
    assert apply_state(outer, Checkpoint(renamed(f"{prefix}."))) == ()
    assert same(getattr(outer, prefix).state_dict(), net().state_dict())


def test_a_moving_average_as_torch_saves_it(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(net())
    torch.save({"model_ema": averaged.state_dict()}, tmp_path / "a.pth")
    module = net(seed=1)
    notes = apply_state(module, load_state(tmp_path / "a.pth"))
    assert same(module.state_dict(), net().state_dict())
    assert "n_averaged" in notes[0]


def test_the_key_can_be_chosen(tmp_path):
    kinds = {"model": renamed(""), "model_ema": net(seed=1).state_dict(), "nested": {"best": renamed("")}}
    torch.save(kinds, tmp_path / "a.pth")
    assert same(load_state(tmp_path / "a.pth", key="model_ema").tensors, net(seed=1).state_dict())
    with pytest.raises(UsageError, match=r"no key 'nope'; it has model, model_ema, nested"):
        load_state(tmp_path / "a.pth", key="nope")
    with pytest.raises(BadInputError, match="--checkpoint-key, such as best"):
        load_state(tmp_path / "a.pth", key="nested")


def test_a_checkpoint_that_holds_itself_ends(tmp_path):
    looped: dict = {}
    looped["model"] = looped
    torch.save(looped, tmp_path / "a.pth")
    with pytest.raises(BadInputError, match="holds no weights"):
        load_state(tmp_path / "a.pth")


def test_safetensors(tmp_path):
    save_tensors(renamed("module."), {"from": "tests"}, tmp_path / "a.pth")
    checkpoint = load_state(tmp_path / "a.pth")
    assert same(checkpoint.tensors, renamed("module."))
    assert checkpoint.metadata == {"from": "tests"}
    data = bytearray((tmp_path / "a.pth").read_bytes())
    data[12] ^= 0xFF
    (tmp_path / "a.pth").write_bytes(data)
    with pytest.raises(BadInputError, match="damaged safetensors"):
        load_state(tmp_path / "a.pth")


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_not_run(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(2), "x": Evil()}, "a.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(BadInputError, match=r"would run code when loaded: it needs .*mkdir") as error:
        load_state("a.pth")
    assert "\n" not in str(error.value)
    assert "--trust-checkpoint" in str(error.value)
    assert not (tmp_path / "pwned").exists()
    load_state("a.pth", trust=True)
    assert (tmp_path / "pwned").exists()  # or the test above shows nothing


def test_code_that_hides_behind_a_harmless_name_is_not_run(tmp_path, monkeypatch):
    # The scan of names is no gate; torch's restricted loader is.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("convbn.export.files.sniff.code_globals", lambda file, max_mib: [])
    torch.save({"w": torch.zeros(2), "x": Evil()}, "a.pth")
    with pytest.raises(BadInputError, match="mkdir"):
        load_state("a.pth")
    assert not (tmp_path / "pwned").exists()


def test_modules_and_programs_are_refused(tmp_path):
    torch.save(net(), tmp_path / "a.pth")
    with pytest.raises(BadInputError, match=r"BatchNorm2d.*save torch\.save\(model\.state_dict\(\)"):
        load_state(tmp_path / "a.pth")
    trusted = load_state(tmp_path / "a.pth", trust=True)
    assert same(trusted.tensors, net().state_dict())
    assert trusted.notes == ("Took the weights of the pickled Sequential.",)
    save_program(net(), torch.zeros(1, 3, 8, 8), tmp_path / "a.pt2")
    with pytest.raises(BadInputError, match=r"torch\.export archive, not a checkpoint"):
        load_state(tmp_path / "a.pt2")


@pytest.mark.parametrize("content", [{}, {"a": 1}, [1, 2], 3, {"state_dict": {}}])
def test_no_weights_inside(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(BadInputError, match="holds") as error:
        load_state(tmp_path / "a.pth")
    assert "\n" not in str(error.value)


def test_plain_pickle(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(BadInputError) as error:
        load_state(tmp_path / "a.pkl")
    assert "torch did not write" in str(error.value)


def test_compressed_archive_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "b.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "b.pth").stat().st_size < 20_000
    with pytest.raises(BadInputError, match=r"compressed members and would unpack to 3 MiB.*mib 4"):
        load_state(tmp_path / "b.pth", limits=Limits(unpacked_mib=2))
    assert torch.equal(load_state(tmp_path / "b.pth").tensors["w"], torch.zeros(1 << 20))


def test_bombs_are_refused_before_anything_is_allocated(tmp_path):
    """1.2 GB of zeros in a megabyte, and a pickle that goes on and on; under a cap on the address space."""
    torch.save({"w": torch.zeros(1)}, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as new:
        for name in old.namelist():
            if not name.endswith("data/0"):
                new.writestr(name, old.read(name), zipfile.ZIP_STORED)
        with new.open(zipfile.ZipInfo("a/data/0"), "w", force_zip64=True) as member:
            member._compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
            member._zinfo.compress_type = zipfile.ZIP_DEFLATED
            for _ in range(1200):
                member.write(bytes(1 << 20))
    assert (tmp_path / "bomb.pth").stat().st_size < 2 << 20
    with zipfile.ZipFile(tmp_path / "pickle.pth", "w") as new:
        new.writestr("a/data.pkl", b"\x80\x02" + b"N0" * (2 << 20) + b".", zipfile.ZIP_DEFLATED)
    (tmp_path / "plain.pkl").write_bytes(b"\x80\x02" + b"N0" * (5 << 20) + b".")
    for name, message in (
        ("bomb.pth", "unpack to"),
        ("pickle.pth", "its pickle"),
        ("plain.pkl", "its pickle"),
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(BadInputError, match=message):
            load_state(tmp_path / name)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_no_negative_caps():
    for caps in ({"pickle_mib": -1}, {"unpacked_mib": -1}):
        with pytest.raises(UsageError, match="negative"):
            Limits(**caps)


def test_missing_file_and_damage(tmp_path):
    with pytest.raises(FileAccessError, match="does not exist"):
        load_state(tmp_path / "no")
    generator, messages = random.Random(0), []
    for legacy in (False, True):
        torch.save(net().state_dict(), tmp_path / "a", _use_new_zipfile_serialization=not legacy)
        data = (tmp_path / "a").read_bytes()
        for turn in range(60):
            broken = bytearray(data)
            if turn % 2:
                del broken[generator.randrange(len(data)) :]
            else:
                broken[generator.randrange(min(len(data), 1500))] ^= 1 << generator.randrange(8)
            (tmp_path / "b").write_bytes(broken)
            try:
                load_state(tmp_path / "b")
            except ConvBNError as error:
                messages.append(str(error))
    assert len(messages) > 30
    assert "\n" not in "".join(messages)


def test_apply():
    module = net()
    torch.nn.init.zeros_(module[0].weight)
    apply_state(module, Checkpoint(net().state_dict()))
    assert same(module.state_dict(), net().state_dict())


def test_apply_to_another_module():
    with pytest.raises(BadInputError) as error:
        apply_state(net(), Checkpoint({**net(5).state_dict(), "extra": torch.zeros(1)}))
    assert "1 unexpected: extra" in str(error.value)
    assert "of another shape: 0.weight (5x3x3x3 for 4x3x3x3)" in str(error.value)
    assert "(5 for 4) and 2 more" in str(error.value)
    assert "\n" not in str(error.value)
    state = net().state_dict()
    del state["1.weight"]
    with pytest.raises(BadInputError, match=r"1 missing: 1\.weight; name"):
        apply_state(net(), Checkpoint(state))


def test_old_checkpoints_lack_num_batches_tracked():
    state = {key: value for key, value in net().state_dict().items() if "num_batches" not in key}
    apply_state(net(), Checkpoint(state))
