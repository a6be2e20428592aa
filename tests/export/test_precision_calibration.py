"""Calibration data: cut into the model's batches, and refused in one line where it does not fit."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from support.graphs import model, random

from convbn.converting import Conversion, converted
from convbn.errors import FileAccessError, UsageError
from convbn.export.precision.errors import CalibrationError
from convbn.export.precision.int8.calibration import calibration_from, read_calibration
from convbn.export.precision.int8.images import Preprocess, load_image, parse_preprocess
from convbn.export.precision.options import PrecisionOptions


def network(batch: int | str = 2, size: int | str = 4, channels: int = 3) -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"])], {"x": [batch, channels, size, size]}, ["y"], {})


def two_inputs() -> onnx.ModelProto:
    return model([helper.make_node("Add", ["a", "b"], ["y"])], {"a": [2, 3], "b": [2, 3]}, ["y"], {})


def shapes(calibration: Any) -> list[tuple[int, ...]]:
    return [sample["x"].shape for sample in calibration.samples()]


def test_arrays_are_cut_into_batches_and_the_last_is_filled_up(tmp_path: Path) -> None:
    array = random(5, 3, 4, 4)
    np.save(tmp_path / "a.npy", array)
    calibration = read_calibration(tmp_path / "a.npy", network())
    assert shapes(calibration) == [(2, 3, 4, 4)] * 3
    last = list(calibration.samples())[2]["x"]
    np.testing.assert_array_equal(last, array[[4, 0]])
    assert calibration.summary() == {"origin": str(tmp_path / "a.npy"), "samples": 3}


def test_an_open_batch_takes_eight_at_a_time(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", random(20, 3, 4, 4))
    assert shapes(read_calibration(tmp_path / "a.npy", network("n"))) == [(8, 3, 4, 4)] * 3
    np.save(tmp_path / "a.npy", random(3, 3, 4, 4))
    assert shapes(read_calibration(tmp_path / "a.npy", network("n"))) == [(3, 3, 4, 4)]


def test_a_folder_of_single_samples(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", random(3, 4, 4, seed=i))
    (tmp_path / "notes.txt").write_text("not data")
    calibration = read_calibration(tmp_path, network(1))
    assert shapes(calibration) == [(1, 3, 4, 4)] * 3
    np.testing.assert_array_equal(list(calibration.samples())[1]["x"][0], random(3, 4, 4, seed=1))


def test_npz_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", b=random(4, 3, seed=1), a=random(4, 3))
    samples = list(read_calibration(tmp_path / "a.npz", two_inputs()).samples())
    assert [list(sample) for sample in samples] == [["a", "b"]] * 2
    np.testing.assert_array_equal(samples[1]["b"], random(4, 3, seed=1)[2:])


def test_python_samples() -> None:
    stream = (random(2, 3, 4, 4, seed=i) for i in range(3))
    calibration = calibration_from(stream, network())
    assert len(list(calibration.samples())) == len(list(calibration.samples())) == 3
    named = calibration_from([{"a": random(2, 3), "b": random(2, 3)}], two_inputs())
    assert len(named) == 1


def test_inputs_without_a_batch_are_not_cut() -> None:
    built = model([helper.make_node("Mul", ["x", "s"], ["y"])], {"x": [4, 3], "s": []}, ["y"], {})
    feeds = {"x": random(4, 3), "s": np.array(2, np.float32)}
    assert [sample["x"].shape for sample in calibration_from([feeds], built).samples()] == [(4, 3)]
    twice = calibration_from([{**feeds, "x": random(8, 3)}], built)
    assert [(sample["x"].shape, sample["s"]) for sample in twice.samples()] == [((4, 3), 2), ((4, 3), 2)]
    with pytest.raises(CalibrationError, match="shape 2 does not fit input s") as caught:
        calibration_from([{**feeds, "s": np.ones(2, np.float32)}], built)
    assert caught.value.hint == "an input without axes takes one value for a whole file"


def several_dynamic() -> onnx.ModelProto:
    """Two signals of lengths of their own, and a count that both results are multiplied by."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv_x"),
        helper.make_node("Conv", ["z", "v"], ["d"], name="conv_z"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("GlobalAveragePool", ["d"], ["q"]),
        helper.make_node("Add", ["p", "q"], ["s"]),
        helper.make_node("Cast", ["k"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "f"], ["y"]),
    ]
    weights = {"w": random(6, 4, 3), "v": random(6, 4, 3, seed=1)}
    built = model(nodes, {"x": ["n", 4, "t"], "z": ["n", 4, "u"]}, ["y"], weights)
    built.graph.input.append(helper.make_tensor_value_info("k", onnx.TensorProto.INT64, []))
    return built


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_a_folder_of_several_dynamic_inputs_and_a_count(tmp_path: Path, method: str) -> None:
    for i in range(4):
        rows = 3 + 6 * (i == 3)
        arrays = {"x": random(rows, 4, 10 + i, seed=i), "z": random(rows, 4, 20 - i, seed=i + 9)}
        np.savez(tmp_path / f"{i}.npz", k=np.int64(2), **arrays)
    seen = [
        {name: array.shape for name, array in sample.items()}
        for sample in read_calibration(tmp_path, several_dynamic()).samples()
    ]
    assert len(seen) == 5
    assert seen[1] == {"x": (3, 4, 11), "z": (3, 4, 19), "k": ()}
    assert seen[3] == seen[4] == {"x": (8, 4, 13), "z": (8, 4, 17), "k": ()}
    wanted = Conversion("int8", PrecisionOptions(method=method), calibration=tmp_path)
    record = converted(several_dynamic(), wanted).record
    assert record["quantised"] == ["conv_x", "conv_z"]
    assert record["verify"]["status"] == "equal"
    assert record["calibration"]["samples"] == 5


def test_what_cannot_feed_a_count_says_which_form_can(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", random(3, 4, 10))
    with pytest.raises(CalibrationError, match="is one array, but the model has 3 inputs") as caught:
        read_calibration(tmp_path / "x.npy", several_dynamic())
    assert "give .npz files" in str(caught.value.hint)
    assert "k (int64 scalar)" in str(caught.value.hint)
    (tmp_path / "x.npy").rename(tmp_path / "x.png")
    with pytest.raises(CalibrationError, match=r"images need .* k \(int64 scalar\)") as caught:
        read_calibration(tmp_path, several_dynamic(), preprocess=Preprocess())
    assert "give .npz files" in str(caught.value.hint)


def test_inputs_with_batches_of_their_own() -> None:
    built = model([helper.make_node("Add", ["a", "b"], ["y"])], {"a": [4, 3], "b": [1, 3]}, ["y"], {})
    assert len(calibration_from([{"a": random(4, 3), "b": random(1, 3)}], built)) == 1
    with pytest.raises(CalibrationError, match="no batch size in common"):
        calibration_from([{"a": random(4, 3), "b": random(4, 3)}], built)


def test_a_limit_takes_samples_from_everywhere() -> None:
    calibration = calibration_from(
        [np.full((1, 3, 4, 4), i, np.float32) for i in range(9)], network(1), limit=3
    )
    assert [sample["x"].max() for sample in calibration.samples()] == [0, 4, 8]
    with pytest.raises(UsageError, match="0 samples calibrate nothing"):
        calibration.limited(0)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (random(2, 3, 4, 5), "shape 2x3x4x5 does not fit input x (float32 2x3x4x4)"),
        (random(2, 3), "shape 2x3 does not fit"),
        (
            random(2, 3, 4, 4, dtype=np.float64),
            "is float64, not float32; the model takes x (float32 2x3x4x4)",
        ),
        (np.zeros((2, 3, 4, 4), np.uint8), "is uint8, not float32"),
        (np.full((2, 3, 4, 4), np.nan, np.float32), "holds NaN or infinity"),
        (np.zeros((0, 3, 4, 4), np.float32), "holds an empty array"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, array: np.ndarray, told: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(CalibrationError) as error:
        read_calibration(tmp_path / "a.npy", network())
    assert told in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "a.npy"))
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 3


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=random(2, 3))
    with pytest.raises(CalibrationError, match=r"has no array for input 'b'; its inputs are a .*, b "):
        read_calibration(tmp_path / "a.npz", two_inputs())
    np.savez(tmp_path / "a.npz", a=random(2, 3), b=random(2, 3), c=random(2, 3))
    with pytest.raises(CalibrationError, match="the model has no input 'c'"):
        read_calibration(tmp_path / "a.npz", two_inputs())
    np.save(tmp_path / "a.npy", random(2, 3))
    with pytest.raises(CalibrationError, match="is one array, but the model has 2 inputs"):
        read_calibration(tmp_path / "a.npy", two_inputs())
    np.savez(tmp_path / "a.npz", a=random(2, 3), b=random(4, 3))
    with pytest.raises(CalibrationError, match="differ in their number of samples"):
        read_calibration(tmp_path / "a.npz", two_inputs())


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileAccessError, match="no such file"):
        read_calibration(tmp_path / "none", network())
    with pytest.raises(CalibrationError, match=r"holds no calibration data; give samples, \.npz"):
        read_calibration(tmp_path, network())
    with pytest.raises(CalibrationError, match="Python: holds no calibration data"):
        calibration_from([], network())
    (tmp_path / "model.txt").write_text("x")
    with pytest.raises(CalibrationError, match="holds no calibration data"):
        read_calibration(tmp_path / "model.txt", network())


def test_damaged_files(tmp_path: Path) -> None:
    for name, content in (
        ("a.npy", b"garbage"),
        ("b.npy", b""),
        ("c.npz", b"PK\x03\x04garbage"),
        ("d.npz", b"x"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CalibrationError, match="is not a NumPy file of plain arrays"):
            read_calibration(tmp_path / name, network())


def test_pickles_are_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (ran,))

    np.save(tmp_path / "a.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(CalibrationError, match="plain arrays"):
            read_calibration(tmp_path / name, network())
    assert not ran.exists()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "images"
    (folder / "class").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / "class" / f"{i}.png")
    return folder


def test_images_need_a_stated_preprocessing(images: Path) -> None:
    with pytest.raises(UsageError, match="images need a preprocessing, which no default can guess"):
        read_calibration(images, network())
    calibration = read_calibration(images, network(), preprocess=Preprocess())
    assert shapes(calibration) == [(2, 3, 4, 4)] * 2


def test_the_arithmetic_of_a_preprocessing(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[..., 0], pixels[..., 2] = 255, 51
    image.fromarray(pixels).save(tmp_path / "a.png")
    step = parse_preprocess("size=4,mean=0.5/0/0,std=0.5/1/2").settled((1, 3, 4, 4))
    array = load_image(tmp_path / "a.png", step)
    assert array.dtype == np.float32
    np.testing.assert_allclose(array[:, 0, 0], [1, 0, 0.1], atol=1e-6)
    step = parse_preprocess("colour=bgr,layout=nhwc,scale=255").settled((1, 4, 4, 3))
    np.testing.assert_allclose(load_image(tmp_path / "a.png", step)[0, 0], [51, 0, 255], atol=1e-4)
    step = parse_preprocess("colour=grey,size=2x4").settled((1, 1, 2, 4))
    assert load_image(tmp_path / "a.png", step).shape == (1, 2, 4)


def test_the_centre_is_cut_out(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 6:10] = 255
    image.fromarray(pixels).save(tmp_path / "a.png")
    step = Preprocess(size=(8, 4), resize=8).settled((1, 3, 8, 4))
    assert load_image(tmp_path / "a.png", step).min() == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mean", "not understood at 'mean'"),
        ("size=4,size=5", "not understood at 'size=5'"),
        ("colours=3", "not understood at 'colours=3'"),
        ("size=a", "no value of that kind"),
        ("size=1x2x3", "no value of that kind"),
        ("mean=0.1/0.2", "need 1 or 3 values"),
        ("std=0", "must be positive"),
        ("layout=hwc", "no layout 'hwc'"),
        ("colour=red", "no colour 'red'"),
    ],
)
def test_preprocessings_that_make_no_sense(text: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_preprocess(text)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("step", "shape", "told"),
    [
        (Preprocess(colour="grey"), (1, 3, 4, 4), "grey images have 1 channels"),
        (Preprocess(), (1, 3, None, None), "leaves the size of images open"),
        (Preprocess(size=(5, 5)), (1, 3, 4, 4), "size 5x5 is not the model's, 4x4"),
        (Preprocess(resize=3), (1, 3, 4, 4), "resize=3 is smaller than what is cut out"),
    ],
)
def test_preprocessings_that_do_not_fit(step: Preprocess, shape: tuple[int | None, ...], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        step.settled(shape)


def test_images_that_are_none(images: Path) -> None:
    with pytest.raises(CalibrationError, match="images need a model with one float32 input of rank 4"):
        read_calibration(images, two_inputs(), preprocess=Preprocess())
    (images / "a.png").write_bytes(b"no image")
    with pytest.raises(CalibrationError, match="is not an image"):
        list(read_calibration(images, network(), preprocess=Preprocess()).samples())
    good = (images / "class" / "0.png").read_bytes()
    (images / "a.png").write_bytes(good[: len(good) // 2])
    with pytest.raises(CalibrationError, match="is a damaged image"):
        list(read_calibration(images, network(), preprocess=Preprocess()).samples())
    np.save(images / "b.npy", random(2, 3, 4, 4))
    with pytest.raises(CalibrationError, match="holds arrays and images"):
        read_calibration(images, network(), preprocess=Preprocess())
