"""Regions of a folded model: which nodes hang together, what they store, and which are one layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from convbn.bench.proof.claims import Claim, align
from convbn.bench.proof.graph.dataflow import Dataflow
from convbn.bench.proof.local import _chunks, _stored_unit
from convbn.bench.proof.regions import LinearLayer, Region, linear_layer, regions_of, terms_of


def node(op: str, reads: str, gives: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, reads.split(), gives.split(), **attributes)


def flow(nodes: list[onnx.NodeProto], stored: Mapping[str, Any], outputs: str = "y") -> Dataflow:
    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, 1, None)

    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", [value("x")], [value(name) for name in outputs.split()], tensors)
    return Dataflow(helper.make_model(graph))


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


NODES = [
    node("Conv", "x w", "a"),
    node("Relu", "a", "b"),
    node("Conv", "b v", "c"),
    node("Add", "c k", "d"),
    node("Reshape", "d rows", "e"),
    node("Tanh", "e", "y"),
]
STORED = {"w": ones(2, 3, 1, 1), "v": ones(4, 2, 1, 1), "k": ones(1), "rows": np.array([1, -1])}


def test_nodes_between_shared_values_are_a_region_of_their_own() -> None:
    before = flow(NODES, STORED)
    after = flow(NODES, {**STORED, "w": 2 * ones(2, 3, 1, 1), "v": 3 * ones(4, 2, 1, 1)})
    first, second = regions_of(after, align(before, after, {"c", "d"}, {"c", "d"}))
    assert (first.nodes, first.claims, first.loose, first.fresh, first.weights) == (
        (0,),
        (Claim("a", "a", True),),
        ("w",),
        ("w",),
        6,
    )
    assert first.layer is not None
    # The integers of a reshape are none of its numbers, and the bias is the original's.
    assert (second.nodes, second.claims) == ((2, 3, 4), (Claim("e", "e", True),))
    assert (second.loose, second.fresh, second.weights, second.layer) == (("v", "k"), ("v",), 8, None)


def test_a_layer_whose_input_is_no_shared_value_is_none_that_is_judged_by_itself() -> None:
    before = flow(NODES, STORED)
    after = flow(NODES, {**STORED, "w": 2 * ones(2, 3, 1, 1)})
    (region,) = regions_of(after, align(before, after, {"a", "b", "c"}, {"a", "b", "c"}))
    assert (region.nodes, region.claims) == ((0, 1, 2, 3), (Claim("d", "d", True),))
    assert region.weights == 14
    assert region.layer is None


def test_a_bias_is_no_weight() -> None:
    stored = {"w": ones(2, 3, 1, 1), "t": ones(2)}
    before = flow([node("Conv", "x w t", "y")], stored)
    (region,) = regions_of(
        after := flow([node("Conv", "x w t", "y")], {**stored, "t": 2 * ones(2)}), align(before, after, set())
    )
    assert (region.weights, region.loose, region.fresh) == (6, ("w", "t"), ("t",))


def test_products_are_the_weights_at_every_pixel_of_every_sample() -> None:
    def region(*names: str) -> Region:
        return Region((), tuple(Claim(name, name, True) for name in names), (), (), 10, None)

    values = {"a": np.zeros((2, 3, 4, 5)), "b": np.zeros((1, 7, 9, 9))}
    assert region("a").products(values) == 10 * 2 * 20
    assert region("a", "b").products(values) == 10 * 81
    assert region().products(values) == 10
    values = {"a": np.zeros(()), "b": np.zeros(5), "c": np.zeros((4, 0, 3))}
    assert region("a", "b").products(values) == 10
    assert region("a", "b", "c").products(values) == 0


@pytest.mark.parametrize(
    ("made", "shape", "given", "positions"),
    [
        (node("Conv", "x w", "y"), (8, 3, 1, 1), (1, 8, 5, 7), 35),
        (node("ConvTranspose", "x w", "y", group=2), (6, 4, 2, 2), (1, 8, 5, 7), 35),
        (node("MatMul", "x w", "y"), (6, 8), (2, 35, 8), 70),
        (node("Gemm", "x w", "y"), (6, 8), (35, 8), 35),
        (node("Gemm", "x w", "y", transB=1), (8, 6), (35, 8), 35),
    ],
    ids=["Conv", "ConvTranspose", "MatMul", "Gemm", "Gemm transB"],
)
def test_positions_are_counted_beside_the_channels_that_a_layer_has(
    made: onnx.NodeProto, shape: tuple[int, ...], given: tuple[int, ...], positions: int
) -> None:
    before, after = (flow([made], {"w": number * ones(*shape)}) for number in (1, 2))
    (region,) = regions_of(after, align(before, after, set()))
    assert region.products({"y": np.zeros(given)}) == region.weights * positions


def test_heads_that_a_reshape_made_are_no_channels() -> None:
    made = [node("MatMul", "x w", "a"), node("Reshape", "a rows", "b"), node("Neg", "b", "y")]
    stored = {"rows": np.array([2, 4, 5, 2])}
    before, after = (flow(made, {**stored, "w": number * ones(6, 8)}, "a y") for number in (1, 2))
    (region,) = regions_of(after, align(before, after, {"b"}, {"b"}))
    values = {"a": np.zeros((2, 5, 8)), "y": np.zeros((2, 4, 5, 2)), "b": np.zeros((2, 4, 5, 2))}
    assert region.products(values) == region.weights * 10


def layer(made: onnx.NodeProto, **stored: Any) -> LinearLayer | None:
    return linear_layer(flow([made], stored), 0)


def test_what_is_no_layer_of_stored_weights_is_none() -> None:
    assert layer(node("Relu", "x", "y")) is None
    assert layer(node("Mul", "x w", "y"), w=ones(3, 3)) is None
    assert layer(node("Gemm", "x", "y")) is None
    assert layer(node("MatMul", "x other", "y"), w=ones(3, 3)) is None
    assert layer(node("MatMul", "w x", "y"), w=ones(3, 3)) is None
    assert layer(node("MatMul", "x w", "y"), w=ones(2, 3, 3)) is None


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_norms_hold_what_their_type_does_not(dtype: type) -> None:
    """In float16 300² is infinite, in float32 1e200 is."""
    size = 1e100 if dtype is np.float64 else 300
    found = layer(node("Conv", "x w", "y"), w=np.full((2, 4, 1, 1), size).astype(dtype))
    assert found is not None
    np.testing.assert_allclose(found.norms, [2 * size] * 2, rtol=1e-2)
    assert (found.terms, found.axis, found.dtype) == (4, 1, np.dtype(dtype))


def test_a_bias_is_read_with_its_factor() -> None:
    for factor, expected in ((None, [1.0, 2.0]), (3.0, [3.0, 6.0])):
        attributes = {} if factor is None else {"beta": factor}
        found = layer(node("Gemm", "x w b", "y", **attributes), w=ones(5, 2), b=np.float32([1, 2]))
        assert found is not None
        np.testing.assert_array_equal(found.bias, expected)
        assert (found.terms, found.axis) == (5, -1)
    assert layer(node("Gemm", "x w b", "y"), w=ones(5, 3), b=ones(2)) is None
    flat = layer(node("Gemm", "x w b", "y"), w=ones(5, 2), b=np.float32([[1, 2]]))
    assert flat is not None
    assert flat.bias.tolist() == [1.0, 2.0]
    turned = layer(node("Gemm", "x w", "y", transB=1, alpha=-2.0), w=ones(2, 9))
    assert turned is not None
    np.testing.assert_array_equal(turned.norms, [6, 6])
    np.testing.assert_array_equal(turned.bias, [0, 0])
    plain = layer(node("Gemm", "x w", "y", transB=0), w=ones(9, 2))
    assert plain is not None
    assert plain.terms == 9


def test_groups_of_a_transposed_convolution_lie_behind_each_other() -> None:
    kernel = np.zeros((4, 3, 1, 2), np.float32)
    kernel[0, 1], kernel[3, 2] = 3, 4  # the first group's second channel, the second group's third
    found = layer(node("ConvTranspose", "x w", "y", group=2), w=kernel)
    assert found is not None
    np.testing.assert_allclose(found.norms, [0, 18**0.5, 0, 0, 0, 32**0.5])
    assert found.terms == 4


def region_of(*nodes: int, loose: tuple[str, ...] = ()) -> Region:
    return Region(nodes, (), loose, (), 0, None)


def test_terms_are_those_of_the_longest_sum() -> None:
    both = flow(
        [
            node("Conv", "x w", "a"),
            node("MatMul", "a v", "b"),
            node("Mul", "b k", "c"),
            node("Conv", "c a b", "y"),
        ],
        {"w": ones(4, 2, 3, 1), "v": ones(12, 5), "k": ones(1000)},
    )
    assert terms_of(both, region_of(0)) == 24 // 1
    assert terms_of(both, region_of(1)) == 12
    assert terms_of(both, region_of(0, 1)) == 24
    assert terms_of(both, region_of(2)) == 0  # a vector has no sums
    assert terms_of(both, region_of(3)) == 0  # a weight that is computed is not known


def test_the_unit_is_that_of_the_coarsest_number() -> None:
    held = flow([], {"a": ones(1), "b": np.float16([1]), "c": np.float64([1])})
    value = np.zeros(1, np.float32)
    assert _stored_unit(held, region_of(loose=("a", "c")), value) == 2.0**-23
    assert _stored_unit(held, region_of(loose=("a", "b")), value) == 2.0**-10
    assert _stored_unit(held, region_of(), value) == 2.0**-23
    assert _stored_unit(held, region_of(), value.astype(np.float64)) == 2.0**-52


def test_weights_are_loaded_some_at_a_time() -> None:
    def sized(weights: int) -> Region:
        return Region((), (), (), (), weights, None)

    small, large = sized(1), sized(16_000_001)
    assert list(_chunks([small, large, small, small])) == [[small, large], [small, small]]
    assert list(_chunks([large])) == [[large]]
    assert list(_chunks([])) == []
    full = sized(16_000_000)  # 64 MB are not too many
    assert list(_chunks([full, small, small])) == [[full, small], [small]]
