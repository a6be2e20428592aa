"""Parts of one value that are put together again take one map, which their whole takes once."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from onnx import helper
from support.graphs import Writer, model, operators, random, relative_error, run

from convbn.fuse.fold import fold


def conv(w: Writer, x: str = "x", **attributes: int) -> str:
    return w("Conv", x, random(4, 4, 1, 1, seed=len(w.nodes)), random(4, seed=9), **attributes)


def split(w: Writer, x: str, axis: int, pieces: int) -> list[str]:
    names = [f"{x}.{i}" for i in range(pieces)]
    w.nodes.append(helper.make_node("Split", [x], names, name=f"split {x}", axis=axis, num_outputs=pieces))
    return names


def roll(w: Writer, x: str, axis: int = 2) -> str:
    """The last two positions come first."""
    return w("Concat", w("Slice", x, [-2], [99], [axis]), w("Slice", x, [0], [-2], [axis]), axis=axis)


def roll_both(w: Writer, x: str) -> str:
    return roll(w, roll(w, x, 2), 3)


def windows(w: Writer, x: str) -> str:
    """Pieces, one of them turned over, in another order."""
    first, second, third = split(w, x, 3, 3)
    turned = w("Slice", second, [-1], [-99], [3], [-1])
    return w("Concat", third, turned, first, axis=3)


def padded(w: Writer, x: str) -> str:
    """What was cut off comes back as a reflection, and both ways through a pool."""
    near = w("AveragePool", x, kernel_shape=[1, 1])
    return w("Concat", near, w("Slice", x, [0], [3], [2]), axis=2)


def summed(w: Writer, x: str) -> str:
    """Two parts of one value are added; a shift would be needed in one of them alone."""
    y = w("Relu", x)
    return w("Add", w("MaxPool", y, kernel_shape=[1, 1]), w("GlobalMaxPool", y))


def channels(w: Writer, x: str) -> str:
    """Joined along the channels, the parts take different numbers."""
    first, second = split(w, x, 1, 2)
    return w("Concat", second, first, axis=1)


def built(way: Callable[[Writer, str], str], *, seen: bool = False) -> onnx.ModelProto:
    w = Writer()
    x = conv(w)
    y = w.batchnorm(way(w, x), 4)
    outputs = [w("Relu", y)]
    if seen:  # a part, which must not change
        part = next(node.output[0] for node in w.nodes if node.op_type in ("Slice", "Split"))
        outputs.append(w("Sigmoid", part))
    return model(w.nodes, {"x": [2, 4, 6, 6]}, outputs, w.constants)


def check(made: onnx.ModelProto, left: int) -> onnx.ModelProto:
    result = fold(made)
    feeds = {"x": random(2, 4, 6, 6, seed=7)}
    assert relative_error(run(made, feeds), run(result.model, feeds)) < 1e-5
    assert result.report.batchnorm.after == left, result.report.kept
    return result.model


@pytest.mark.parametrize("way", [roll, roll_both, windows, padded, channels])
def test_the_whole_takes_the_map_once(way: Callable[[Writer, str], str]) -> None:
    made = built(way)
    expected = [kind for kind in operators(made) if kind != "BatchNormalization"]
    assert operators(check(made, 0)) == expected


@pytest.mark.parametrize("way", [roll, windows])
def test_a_part_that_something_else_reads_keeps_it(way: Callable[[Writer, str], str]) -> None:
    check(built(way, seen=True), 1)


def test_parts_that_are_outputs_keep_it() -> None:
    w = Writer()
    x = conv(w)
    parts = [w("Slice", x, [-2], [99], [2]), w("Slice", x, [0], [-2], [2])]
    y = w("Relu", w.batchnorm(w("Concat", *parts, axis=2), 4))
    check(model(w.nodes, {"x": [2, 4, 6, 6]}, [y, parts[1]], w.constants), 1)


def test_a_reader_that_wants_another_map_keeps_it() -> None:
    """Of two parts one is negated: it would need the inverse shift."""
    w = Writer()
    x = conv(w)
    parts = [w("Neg", x), w("Slice", x, [0], [-2], [2])]
    y = w("Relu", w.batchnorm(w("Concat", *parts, axis=2), 4))
    check(model(w.nodes, {"x": [2, 4, 6, 6]}, [y], w.constants), 1)


@pytest.mark.parametrize("positive", [True, False])
def test_a_scale_goes_through_a_sum_of_two_pools(positive: bool) -> None:
    w = Writer()
    y = w("Mul", summed(w, conv(w)), (1.0 if positive else -1.0) * abs(random(4, 1, 1, seed=3)))
    made = model(w.nodes, {"x": [2, 4, 6, 6]}, [w("Sigmoid", y)], w.constants)
    assert operators(check(made, 0)).count("Mul") == (0 if positive else 1)


def sliced(w: Writer, x: str, *bounds: tuple[int, int]) -> list[str]:
    return [w("Slice", x, [start], [stop], [1]) for start, stop in bounds]


def test_slices_that_cover_a_convolution_have_a_batchnorm_each() -> None:
    w = Writer()
    y = w("Concat", *[w("Relu", w.batchnorm(part, 2)) for part in sliced(w, conv(w), (0, 2), (2, 4))], axis=1)
    check(model(w.nodes, {"x": [2, 4, 6, 6]}, [y], w.constants), 0)


def test_slices_that_share_a_channel_want_other_numbers_of_it() -> None:
    w = Writer()
    y = w("Concat", *[w("Relu", w.batchnorm(part, 3)) for part in sliced(w, conv(w), (0, 3), (1, 4))], axis=1)
    check(model(w.nodes, {"x": [2, 4, 6, 6]}, [y], w.constants), 1)


@pytest.mark.parametrize(
    ("bounds", "left"), [([(2, 4), (0, 2)], 0), ([(0, 2), (0, 2)], 1), ([(1, 4), (0, 1)], 0)]
)
def test_channels_in_another_order(bounds: list[tuple[int, int]], left: int) -> None:
    """Each slice asks for its own numbers; of channels that two of them read it would be two."""
    w = Writer()
    y = w("Relu", w.batchnorm(w("Concat", *sliced(w, conv(w), *bounds), axis=1), 4))
    check(model(w.nodes, {"x": [2, 4, 6, 6]}, [y], w.constants), left)


def test_a_slice_of_what_others_want_changed_is_compensated() -> None:
    """A third slice reads channels that two others want changed, and takes the inverse scale."""
    w = Writer()
    x = conv(w)
    scaled = w("Mul", w("Concat", *sliced(w, x, (2, 4), (0, 2)), axis=1), abs(random(4, 1, 1, seed=3)))
    (third,) = sliced(w, x, (1, 3))
    y = w("Concat", w("Sigmoid", scaled), w("Sigmoid", third), axis=1)
    made = model(w.nodes, {"x": [2, 4, 6, 6]}, [y], w.constants)
    assert operators(check(made, 0)).count("Mul") == 1
