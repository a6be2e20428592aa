from __future__ import annotations

import hashlib
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from convbn.errors import BadInputError, ConvBNError, FileAccessError
from convbn.export.files.atomic import sha256_file
from convbn.export.onnx_io import write as onnx_saving
from convbn.export.onnx_io.encoding import encode_model, pieces_of, total_bytes
from convbn.export.onnx_io.read import load_model, read_model, save_model


def joined(model) -> bytes:
    return b"".join(pieces_of(encode_model(model)))


def told(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def external(tiny, tmp_path):
    """A model in a folder of its own, with all weights in `m.bin`."""
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(
        tiny.conv_bn(folded=False), folder / "m.onnx", save_as_external_data=True, location="m.bin",
        size_threshold=0,
    )  # fmt: skip
    return folder / "m.onnx"


def relocate(path, **entries) -> None:
    """Change the external-data entries of the first tensor."""
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    kept = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in kept.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_round_trip(tiny, saved, tmp_path):
    loaded = read_model(saved)
    assert loaded.model == tiny.conv_bn(folded=False)
    assert (loaded.sha256, loaded.size, loaded.external) == (sha256_file(saved), saved.stat().st_size, False)
    save_model(loaded.model, tmp_path / "b.onnx")
    assert (tmp_path / "b.onnx").read_bytes() == saved.read_bytes()
    with pytest.raises(FileAccessError, match="use --force"):
        save_model(loaded.model, tmp_path / "b.onnx")


def test_encoding_is_that_of_protobuf(tiny):
    model = tiny.conv_bn(folded=False)
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.arange(5000, dtype=np.int64), "big"))
    graph.initializer[-1].doc_string = "after raw_data"
    graph.initializer.append(helper.make_tensor("typed", 1, [600], np.ones(600)))
    graph.initializer.append(helper.make_tensor("text", 8, [2], [b"a", b""]))
    graph.node.append(helper.make_node("Constant", [], ["k"], value=graph.initializer[0]))
    graph.node.append(helper.make_node("If", ["q"], ["r"], then_branch=graph, else_branch=graph))
    graph.doc_string = "doc"
    graph.metadata_props.add(key="k", value="é")
    model.model_version = -3
    model.domain = ""
    model.metadata_props.add(key="k", value="v")
    function_opsets = [helper.make_opsetid("", 17)]
    node = helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(helper.make_function("my", "F", ["a"], ["b"], [node], function_opsets))
    sparse = graph.sparse_initializer.add(dims=[10])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "s"))
    assert joined(model) == model.SerializeToString()
    assert total_bytes(encode_model(model)) == len(joined(model))
    assert joined(onnx.ModelProto()) == b""


def test_fields_of_a_later_onnx_survive(tiny):
    # Field 60, length-delimited, in the model, its graph and a large tensor.
    unknown = bytes([60 << 3 & 0x7F | 2 | 0x80, 3]) + b"\x03abc"
    big = numpy_helper.from_array(np.zeros(2000, np.float32), "big")
    big.MergeFromString(unknown)
    model = tiny.conv_bn(folded=False)
    model.graph.initializer.append(big)
    model.graph.MergeFromString(unknown)
    model.MergeFromString(unknown)
    again = onnx.ModelProto.FromString(joined(model))
    assert joined(model).count(unknown) == 3
    assert again.SerializeToString() == model.SerializeToString()


def test_saving_leaves_the_model_alone(tiny, tmp_path):
    model = tiny.conv_bn(folded=False)
    before = model.SerializeToString()
    save_model(model, tmp_path / "a.onnx")
    assert model.SerializeToString() == before


def test_large_models_get_a_data_file(tiny, tmp_path, monkeypatch, names):
    model = tiny.conv_bn(folded=False)
    weight = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    for name in ("big", "bigger"):
        model.graph.initializer.append(numpy_helper.from_array(weight, name))
    before = model.SerializeToString()
    monkeypatch.setattr(onnx_saving, "PROTOBUF_LIMIT", 4000)
    save_model(model, tmp_path / "a.onnx")
    assert len(names(tmp_path)) == 2
    data = next(name for name in names(tmp_path) if name != "a.onnx")
    assert data == f"a.{sha256_file(tmp_path / data)[:16]}.data"
    assert model.SerializeToString() == before
    again = read_model(tmp_path / "a.onnx")
    assert again.external
    assert again.model.SerializeToString() == before
    others = onnx.load(tmp_path / "a.onnx").graph.initializer  # as onnx itself reads it
    assert [numpy_helper.to_array(t).tobytes() for t in others] == [
        numpy_helper.to_array(t).tobytes() for t in model.graph.initializer
    ]
    offsets = [
        int(entry.value)
        for tensor in load_model(tmp_path / "a.onnx", external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "offset"
    ]
    assert offsets == [0, 8192]
    monkeypatch.setattr(onnx_saving, "PROTOBUF_LIMIT", 400)
    with pytest.raises(BadInputError, match="too large"):
        save_model(model, tmp_path / "b.onnx")
    assert "b.onnx" not in names(tmp_path)


def test_external_data_is_read_or_left(external, tiny):
    loaded = read_model(external)
    assert loaded.external
    assert loaded.model == tiny.conv_bn(folded=False)
    left = read_model(external, external_data=False)
    assert left.external
    assert not left.model.graph.initializer[0].raw_data


def test_references_are_not_saved_elsewhere(external, tmp_path):
    model = load_model(external, external_data=False)
    with pytest.raises(BadInputError, match="'w' refers to another file"):
        save_model(model, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../m.bin"}, "not a path inside"),
        ({"location": "sub/../m.bin"}, "not a path inside"),
        ({"location": ""}, "not a path inside"),
        ({"location": "."}, "not a path inside"),
        ({"location": "..\\m.bin"}, "not a path inside"),
        ({"location": "m\0.bin"}, "not a path inside"),
        ({"location": "other.bin"}, "is missing"),
        ({"location": "m.onnx.d"}, "not a regular file"),
        ({"location": "pipe"}, "not a regular file"),
        ({"location": "link.bin"}, "cannot be opened"),
        ({"location": "linked/m.bin"}, "cannot be opened"),
        ({"location": "hard.bin"}, "hard link"),
        ({"offset": "-4"}, "ends at byte"),
        ({"offset": "1000000"}, "but the file has"),
        ({"offset": "x"}, "no number"),
        ({"lgngth": "4"}, "has an entry 'lgngth', which ONNX does not know"),
        ({"length": "99999999999999"}, "where its shape needs"),
    ],
)
def test_bad_external_data(external, tmp_path, entries, message):
    folder = external.parent
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(4096))
    (folder / "link.bin").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    os.link(secret, folder / "hard.bin")
    (tmp_path / "m.bin").write_bytes(bytes(4096))
    (folder / "m.onnx.d").mkdir()
    os.mkfifo(folder / "pipe")
    relocate(external, **entries)
    with pytest.raises(BadInputError, match=message) as error:
        load_model(external)
    assert "'w'" in told(error)
    assert told(error).startswith(f"{external}: ")


def test_absolute_location_is_not_read(external, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(4096))
    relocate(external, location=str(tmp_path / "secret"))
    with pytest.raises(BadInputError, match="not a path inside"):
        load_model(external)


def test_shortened_data_file(external):
    data = external.with_name("m.bin")
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(BadInputError, match="'var' ends at byte"):
        load_model(external)


def test_small_data_read_over_and_over(external):
    model = onnx.load(external, load_external_data=False)
    for number in range(100):
        model.graph.initializer.add().CopyFrom(model.graph.initializer[0])
        model.graph.initializer[-1].name = f"copy{number}"
    external.write_bytes(model.SerializeToString())
    with pytest.raises(BadInputError, match="overlap more than"):
        load_model(external)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.dims.__setitem__(0, -4), "negative dimension -4"),
        (lambda t: t.dims.__setitem__(0, 1 << 62), "absurd shape"),
        (lambda t: t.dims.__setitem__(0, 5), r"'w' \(5x3x3x3\) holds 432 bytes where its shape needs 540"),
        (lambda t: setattr(t, "data_type", 99), "unknown or unfit data type 99"),
        (lambda t: setattr(t, "data_type", 0), "unknown or unfit data type 0"),
        (lambda t: t.ClearField("raw_data"), "holds 0 values"),
        (lambda t: setattr(t, "data_type", 8), "holds 0 bytes"),
    ],
)
def test_tensors_that_lie(tiny, tmp_path, change, message):
    model = tiny.conv_bn(folded=False)
    change(model.graph.initializer[0])
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadInputError, match=message) as error:
        load_model(tmp_path / "a.onnx")
    told(error)


def test_lying_tensors_are_found_in_attributes_and_branches(tiny, tmp_path):
    for where in ("attribute", "branch", "function"):
        model = tiny.conv_bn(folded=False)
        bad = onnx.TensorProto(name="bad", data_type=1, dims=[7])
        node = helper.make_node("Constant", [], ["k"], value=bad)
        if where == "attribute":
            model.graph.node.append(node)
        elif where == "branch":
            branch = helper.make_graph([node], "b", [], [])
            model.graph.node.append(helper.make_node("If", ["q"], ["r"], then_branch=branch))
        else:
            function = helper.make_function("my", "F", [], ["k"], [node], [helper.make_opsetid("", 17)])
            model.functions.append(function)
        (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(BadInputError, match="'bad'"):
            load_model(tmp_path / "a.onnx")


def test_every_type_of_tensor_is_understood(tmp_path):
    tensors = []
    for code in range(1, 27):
        name = onnx.TensorProto.DataType.Name(code)
        values = [b"a", b"b", b"c"] if code == 8 else [1, 0, 1]
        for shape in ([3], [3, 1]):
            tensors.append(helper.make_tensor(f"{name}{len(shape)}", code, shape, values))
        if code != 8:
            array = numpy_helper.to_array(tensors[-1])
            tensors.append(numpy_helper.from_array(array, f"{name}raw"))
        tensors.append(onnx.TensorProto(name=f"{name}none", data_type=code, dims=[0, 3]))
    model = helper.make_model(helper.make_graph([], "g", [], [], tensors))
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    assert len(load_model(tmp_path / "a.onnx").graph.initializer) == len(tensors)


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "is empty"), (b"garbage" * 9, "is not an ONNX model"), (b"\x08\x08", "it holds no graph")],
)
def test_what_is_no_model(tmp_path, data, message):
    (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(BadInputError, match=message) as error:
        load_model(tmp_path / "a.onnx")
    assert told(error).startswith(str(tmp_path / "a.onnx"))


def test_model_without_opset(tiny, tmp_path):
    model = tiny.conv_bn(folded=False)
    del model.opset_import[:]
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadInputError, match="no opset"):
        load_model(tmp_path / "a.onnx")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, message in ((tmp_path / "no", "does not exist"), (tmp_path, "is a folder, not a file")):
        with pytest.raises(FileAccessError, match=message):
            load_model(path)
    with pytest.raises(FileAccessError, match="pipe"):
        load_model(tmp_path / "pipe")


def test_a_sparse_file_beyond_two_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "a.onnx").open("wb") as file:
        file.truncate((1 << 31) + 100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadInputError, match="larger than the 2 GiB"):
        load_model(tmp_path / "a.onnx")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000


def test_damage_gives_typed_errors_or_a_sound_model(saved, tmp_path):
    data, generator, messages = saved.read_bytes(), random.Random(0), []
    path = tmp_path / "damaged.onnx"
    cuts = [int(len(data) * share) for share in (0.1, 0.5, 0.9)] + [len(data) - 1]
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(BadInputError) as error:
            load_model(path)
        told(error)
    for _ in range(400):
        flipped = bytearray(data)
        flipped[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        try:
            model = load_model(path)
        except ConvBNError as error:
            messages.append(str(error))
        else:
            for tensor in model.graph.initializer:
                numpy_helper.to_array(tensor)
    assert len(messages) > 20
    assert "\n" not in "".join(messages)


def test_deep_nesting_does_not_exhaust_the_stack(tmp_path):
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    for _ in range(30):
        graph = helper.make_graph([helper.make_node("If", ["q"], ["y"], then_branch=graph)], "g", [], [])
    (tmp_path / "a.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert load_model(tmp_path / "a.onnx").graph.node[0].op_type == "If"


def test_killed_while_writing_a_pair(tmp_path):
    code = (
        "import itertools, sys\nimport numpy as np, onnx\nfrom onnx import helper, numpy_helper\n"
        "from convbn.export.onnx_io import write\nwrite.PROTOBUF_LIMIT = 4000\n"
        "for i in itertools.count():\n"
        "    w = numpy_helper.from_array(np.full(200_000, i, np.float32), 'w')\n"
        "    g = helper.make_graph([], f'g{i}', [], [], [w])\n"
        "    write.save_model(helper.make_model(g), sys.argv[1], overwrite=True)\n"
        "    print(i, flush=True)\n"
    )
    path = tmp_path / "a.onnx"
    numbers = set()
    for turn in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True
        ) as process:
            for written in range(3 * turn + 1):
                assert process.stdout.readline() == f"{written}\n"
            process.kill()
        model = load_model(path)
        values = numpy_helper.to_array(model.graph.initializer[0])
        number = int(model.graph.name[1:])
        assert set(values) == {number}
        assert number >= 3 * turn
        numbers.add(number)
    assert len(numbers) > 1


def test_a_file_is_hashed_only_for_whoever_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph([], "empty", [], [])), path)
    assert read_model(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()

    def refused(*_: object) -> None:
        raise AssertionError("nobody wants it")

    monkeypatch.setattr(hashlib, "file_digest", refused)
    assert read_model(path, hashed=False).sha256 is None
    load_model(path)
    with pytest.raises(AssertionError, match="nobody wants it"):
        read_model(path)
