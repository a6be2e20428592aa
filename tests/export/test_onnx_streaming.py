"""Models opened without their weights, and written by taking them from where they lie."""

from __future__ import annotations

import copy
import os
import random
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from convbn.errors import BadInputError, FileAccessError, UsageError
from convbn.export.files.atomic import sha256_file
from convbn.export.onnx_io import wire
from convbn.export.onnx_io import write as onnx_saving
from convbn.export.onnx_io.external_data import PIECE, StoredWeights, is_external
from convbn.export.onnx_io.read import load_model, open_model
from convbn.export.onnx_io.write import save_model, staged_model


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of these models count as large."""
    monkeypatch.setattr(wire, "MIN_BYTES", 1024)


def built(**arrays: np.ndarray[Any, Any]) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    value = helper.make_tensor_value_info("x", 1, [1])
    return helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [], tensors)
    )


def noise(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def model() -> onnx.ModelProto:
    proto = built(large=noise(100, 30), small=noise(7), other=noise(2000, seed=1))
    proto.graph.initializer[0].doc_string = "written after the data"
    proto.graph.initializer.append(helper.make_tensor("typed", TensorProto.FLOAT, [600], np.ones(600)))
    return proto


@pytest.fixture
def path(model: onnx.ModelProto, tmp_path: Path) -> Path:
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "m.onnx"


@pytest.fixture
def external(model: onnx.ModelProto, tmp_path: Path) -> Path:
    folder = tmp_path / "external"
    folder.mkdir()
    onnx.save(
        copy.deepcopy(model),
        folder / "m.onnx",
        save_as_external_data=True,
        location="m.bin",
        size_threshold=0,
    )
    return folder / "m.onnx"


def rewritten(source: Path, target: Path, **options: Any) -> None:
    opened = open_model(source)
    with opened.files:
        weights = StoredWeights(opened.files)
        with staged_model(opened.model, target, weights=weights, was_external=opened.external, **options):
            pass


def arrays(path: Path) -> dict[str, bytes]:
    """As onnx itself reads them."""
    return {t.name: numpy_helper.to_array(t).tobytes() for t in onnx.load(path).graph.initializer}


def test_large_weights_are_not_parsed(path: Path, model: onnx.ModelProto) -> None:
    opened = open_model(path)
    with opened.files as files:
        assert {t.name for t in opened.model.graph.initializer if is_external(t)} == {"large", "other"}
        assert opened.model.ByteSize() < 4000 < path.stat().st_size
        assert (opened.sha256, opened.external) == (sha256_file(path), False)
        for tensor, original in zip(opened.model.graph.initializer, model.graph.initializer, strict=True):
            if is_external(tensor):
                assert files.read(tensor) == original.raw_data
                assert b"".join(map(bytes, files.pieces(tensor))) == original.raw_data
    assert load_model(path) == model


def test_rewriting_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    rewritten(path, tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").read_bytes() == path.read_bytes()
    rewritten(path, path, overwrite=True)
    assert path.read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_what_comes_with_a_data_file_goes_with_one(external: Path, model: onnx.ModelProto) -> None:
    target = external.with_name("out.onnx")
    rewritten(external, target)
    (data,) = external.parent.glob("out.*.data")
    assert data.name == f"out.{sha256_file(data)[:16]}.data"
    light = onnx.load(target, load_external_data=False)
    assert [t.name for t in light.graph.initializer if is_external(t)] == ["large", "other"]
    assert {e.value for t in light.graph.initializer for e in t.external_data if e.key == "location"} == {
        data.name
    }
    assert arrays(target) == arrays(external)
    again = external.with_name("again.onnx")
    rewritten(target, again, external_data="never")
    assert arrays(again) == arrays(external)
    assert not list(external.parent.glob("again.*.data"))


def test_over_itself(external: Path) -> None:
    before = arrays(external)
    rewritten(external, external, overwrite=True)
    assert arrays(external) == before
    assert external.with_name("m.bin").exists()  # perhaps another model's as well
    names = {entry.name for entry in external.parent.iterdir()}
    rewritten(external, external, overwrite=True)  # its data file is replaced by itself
    assert arrays(external) == before
    assert {entry.name for entry in external.parent.iterdir()} == names


def test_always_moves_large_weights_out(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.onnx"
    rewritten(path, target, external_data="always")
    assert len(list(tmp_path.glob("out.*.data"))) == 1
    assert arrays(target) == arrays(path)
    save_model(load_model(path), tmp_path / "loaded.onnx", external_data="always")
    assert arrays(tmp_path / "loaded.onnx") == arrays(path)


def test_nothing_to_move_makes_no_data_file(tmp_path: Path) -> None:
    save_model(built(small=noise(3)), tmp_path / "a.onnx", external_data="always")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.onnx"]


def test_never_beyond_the_limit(external: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_saving, "PROTOBUF_LIMIT", 4000)
    with pytest.raises(BadInputError, match="larger than the 2 GiB"):
        rewritten(external, tmp_path / "out.onnx", external_data="never")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["external"]
    with pytest.raises(UsageError, match="'sometimes'"):
        save_model(built(), tmp_path / "out.onnx", external_data="sometimes")  # type: ignore[arg-type]  # on purpose


def test_beyond_the_limit_a_data_file_is_made(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_saving, "PROTOBUF_LIMIT", 15_000)
    rewritten(path, tmp_path / "out.onnx")
    assert len(list(tmp_path.glob("out.*.data"))) == 1
    assert arrays(tmp_path / "out.onnx") == arrays(path)


def test_tied_weights_stay_one(external: Path) -> None:
    light = onnx.load(external, load_external_data=False)
    tied = light.graph.initializer.add()
    tied.CopyFrom(light.graph.initializer[0])
    tied.name = "tied"
    external.write_bytes(light.SerializeToString())
    target = external.with_name("out.onnx")
    rewritten(external, target)
    (data,) = external.parent.glob("out.*.data")
    assert data.stat().st_size == sum(-(-size // 4096) * 4096 for size in (12_000, 8_000))
    assert arrays(target) == arrays(external)


def test_overlap(external: Path) -> None:
    light = onnx.load(external, load_external_data=False)
    for entry in light.graph.initializer[2].external_data:
        if entry.key == "offset":
            entry.value = "8"
    external.write_bytes(light.SerializeToString())
    with pytest.raises(
        BadInputError, match=r"'large' and 'other' overlap in external data 'm\.bin'"
    ) as error:
        open_model(external)
    assert str(external) in str(error.value)


def test_a_model_may_have_a_file_a_tensor(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    source = tmp_path / "many" / "m.onnx"
    proto = built(**{f"w{i}": noise(300, seed=i) for i in range(200)})
    onnx.save(proto, source, save_as_external_data=True, all_tensors_to_one_file=False)
    rewritten(source, tmp_path / "out.onnx")
    assert arrays(tmp_path / "out.onnx") == arrays(source)


def test_pieces(tmp_path: Path) -> None:
    values = noise(PIECE // 4 * 2 + 100)
    (tmp_path / "m.onnx").write_bytes(built(w=values).SerializeToString())
    opened = open_model(tmp_path / "m.onnx")
    with opened.files:
        sizes = [len(piece) for piece in opened.files.pieces(opened.model.graph.initializer[0])]
    assert sizes == [PIECE, PIECE, 400]
    rewritten(tmp_path / "m.onnx", tmp_path / "b.onnx", external_data="always")
    assert arrays(tmp_path / "b.onnx") == {"w": values.tobytes()}


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("change", ["swap", "rewrite", "truncate"])
def test_a_file_that_changes_after_the_check(external: Path, path: Path, own: bool, change: str) -> None:
    source = path if own else external
    data = path if own else external.with_name("m.bin")
    opened = open_model(source)
    if change == "swap":
        shutil.copy(data, data.with_name("copy"))
        os.replace(data.with_name("copy"), data)
    elif change == "rewrite":
        with data.open("r+b") as file:
            file.write(b"changed")
        os.utime(data, ns=(1, 1))
    else:
        os.truncate(data, 100)
    target = source.with_name("out.onnx")
    weights = StoredWeights(opened.files)
    with opened.files:
        if change == "swap":  # the file that was checked is still open, under no name
            with staged_model(opened.model, target, weights=weights):
                pass
            assert target.exists()
            return
        with (
            pytest.raises(BadInputError, match="changed while it was read") as error,
            staged_model(opened.model, target, weights=weights),
        ):
            pass
    assert str(source) in str(error.value)
    assert not list(source.parent.glob("*out*"))


def test_links_put_in_place_after_the_check(tmp_path: Path) -> None:
    """With more data files than are held open, one is opened again, and must be the one that was checked."""
    folder = tmp_path / "many"
    folder.mkdir()
    onnx.save(
        built(**{f"w{i}": noise(300, seed=i) for i in range(100)}),
        folder / "m.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=False,
    )
    (tmp_path / "secret").write_bytes(bytes(1200))
    opened = open_model(folder / "m.onnx")
    os.unlink(folder / "w0")
    os.symlink(tmp_path / "secret", folder / "w0")
    shutil.copy(folder / "w2", folder / "w1")
    with opened.files:
        for name, message in (("w0", "cannot be opened"), ("w1", "changed while it was read")):
            tensor = next(t for t in opened.model.graph.initializer if t.name == name)
            with pytest.raises(BadInputError, match=message):
                opened.files.read(tensor)


def test_the_own_file_cannot_be_named(path: Path) -> None:
    """A reference to the model file itself is drawn by lot; none that stands in a file passes for one."""
    opened = open_model(path)
    opened.files.close()
    proto = onnx.load(path)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for location in (opened.files.own_location, "\0", "\x000"):
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=location)
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(BadInputError, match="not a path inside"):
            open_model(path)


def test_raw_data_beside_a_reference(path: Path) -> None:
    proto = onnx.load(path)
    tensor = proto.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="missing")
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(BadInputError, match="'missing' of tensor 'large' is missing"):
        open_model(path)


def test_weights_in_bodies_and_attributes(tmp_path: Path) -> None:
    then = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(noise(900), "k"))],
        "then",
        [],
        [helper.make_tensor_value_info("k", 1, [900])],
    )
    inner = helper.make_graph(
        [helper.make_node("Relu", ["w"], ["r"])],
        "else",
        [],
        [helper.make_tensor_value_info("r", 1, [900])],
        [numpy_helper.from_array(noise(900, seed=1), "w")],
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=inner)
    inputs = [helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    outputs = [helper.make_tensor_value_info("y", 1, [900])]
    proto = helper.make_model(
        helper.make_graph([node], "g", inputs, outputs, [numpy_helper.from_array(noise(500), "u")])
    )
    (tmp_path / "in").mkdir()
    onnx.save(
        copy.deepcopy(proto), tmp_path / "in" / "m.onnx",
        save_as_external_data=True, size_threshold=0, convert_attribute=True,
    )  # fmt: skip
    rewritten(tmp_path / "in" / "m.onnx", tmp_path / "out.onnx")
    again = load_model(tmp_path / "out.onnx")
    assert again.SerializeToString() == proto.SerializeToString()


def test_a_failing_block_leaves_nothing(path: Path, tmp_path: Path) -> None:
    names = {entry.name for entry in tmp_path.iterdir()}
    opened = open_model(path)
    weights = StoredWeights(opened.files)

    def interrupted() -> None:
        target = tmp_path / "out.onnx"
        with staged_model(opened.model, target, weights=weights, external_data="always") as staged:
            assert arrays(staged.path) == arrays(path)
            assert not target.exists()
            raise KeyboardInterrupt

    with opened.files, pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {entry.name for entry in tmp_path.iterdir()} == names


def test_a_data_file_that_was_there_stays(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewritten(path, tmp_path / "out.onnx", external_data="always")
    names = {entry.name for entry in tmp_path.iterdir()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_saving, "pieces_of", fail)
    with pytest.raises(FileAccessError, match="no space left"):
        rewritten(path, tmp_path / "out.onnx", external_data="always", overwrite=True)
    assert {entry.name for entry in tmp_path.iterdir()} == names
    assert arrays(tmp_path / "out.onnx") == arrays(path)


def test_computed_weights(path: Path, tmp_path: Path) -> None:
    opened = open_model(path)
    tensor = opened.model.graph.initializer[0]
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value="\x001")
    order = "F"  # what is computed need not lie in memory as it is written
    computed = {"\x001": lambda: np.asarray(noise(100, 30, seed=9), order=order).astype(">f4")}
    for mode in ("never", "always"):
        opened = open_model(path)
        opened.model.graph.initializer[0].CopyFrom(tensor)
        with (
            opened.files,
            staged_model(
                opened.model,
                tmp_path / f"{mode}.onnx",
                external_data=mode,
                weights=StoredWeights(opened.files, computed),
            ),
        ):
            pass
        assert arrays(tmp_path / f"{mode}.onnx") == {
            **arrays(path),
            "large": noise(100, 30, seed=9).tobytes(),
        }


@pytest.mark.parametrize("seed", range(3))
def test_damage_is_found_or_harmless(path: Path, model: onnx.ModelProto, seed: int) -> None:
    """What protobuf makes of a damaged file is what comes out, or a typed error."""
    data, generator = path.read_bytes(), random.Random(seed)
    places = [*range(60), *(i for i in range(len(data)) if data[i : i + 5] in (b"large", b"other"))]
    for _ in range(150):
        flipped = bytearray(data)
        place = min(generator.choice(places) + generator.randrange(-12, 12), len(data) - 1) % len(data)
        flipped[place] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            found = load_model(path)
        except BadInputError:
            continue
        assert found == onnx.ModelProto.FromString(bytes(flipped))


def test_cut_anywhere(path: Path) -> None:
    data = path.read_bytes()
    for length in (*range(1, 300, 7), *range(300, len(data), 997), len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(BadInputError):
            open_model(path)


def test_memory_does_not_follow_from_the_size(tmp_path: Path) -> None:
    """A sparse file of 3 GB of weights, a third of what the process may use."""
    tensors = []
    size, count = 64 << 20, 48
    for index in range(count):
        tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[size // 4])
        tensor.data_location = TensorProto.EXTERNAL
        place = {"location": "m.bin", "offset": index * size, "length": size}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        tensors.append(tensor)
    with (tmp_path / "m.bin").open("wb") as file:
        file.truncate(size * count)
    graph = helper.make_graph([], "g", [], [], tensors)
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    code = (
        "import resource, sys\n"
        "from convbn.export.onnx_io.read import open_model\n"
        "opened = open_model(sys.argv[1])\n"
        "for tensor in opened.model.graph.initializer:\n"
        "    assert sum(map(len, opened.files.pieces(tensor))) == 64 << 20\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    # A child starts at its parent's peak, so a small program stands between.
    start = (
        f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {code!r}, sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, tmp_path / "m.onnx"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 200_000


@pytest.mark.parametrize("finished", [True, False], ids=["after-it", "before-it"])
def test_what_another_writer_of_the_same_model_wrote_stays(tmp_path: Path, finished: bool) -> None:
    """Both have the same weights and so the same data file; the first one fails."""
    weight = numpy_helper.from_array(np.ones(1024, np.float32), "w")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1024]) for name in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weight]
    )
    model, target = helper.make_model(graph), tmp_path / "out.onnx"
    first, second = ExitStack(), ExitStack()
    first.enter_context(staged_model(model, target, external_data="always"))
    second.enter_context(staged_model(model, target, external_data="always"))
    if finished:
        second.close()
    assert not first.__exit__(RuntimeError, RuntimeError("not equal"), None)
    second.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert len(onnx.load(target).graph.initializer[0].raw_data) == 4096


@pytest.mark.parametrize("external", ["never", "always"])
@pytest.mark.parametrize("place", ["model", "graph", "node", "value", "large", "small"])
def test_a_note_that_is_no_utf8_is_written_as_it_is(
    place: str, external: str, model: onnx.ModelProto, tmp_path: Path
) -> None:
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    named = {"model": model, "graph": graph, "node": graph.node[0], "value": graph.input[0], **tensors}
    named[place].doc_string = "a note"
    source, target = tmp_path / "m.onnx", tmp_path / "out.onnx"
    source.write_bytes(model.SerializeToString().replace(b"a note", b"a\xa0note"))
    read = load_model(source)
    save_model(read, target, external_data=external)
    assert b"a\xa0note" in target.read_bytes()
    again = load_model(target)
    assert {t.name: numpy_helper.to_array(t).tobytes() for t in again.graph.initializer} == {
        t.name: numpy_helper.to_array(t).tobytes() for t in graph.initializer
    }
