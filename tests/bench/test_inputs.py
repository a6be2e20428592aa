from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from convbn.bench.models.arguments import Arguments, positional
from convbn.bench.models.feeds import model_feeds
from convbn.bench.models.inputs import InputSpec, input_specs, make_inputs
from convbn.errors import BadInputError, FileAccessError, NotSupportedError, UsageError
from convbn.fuse.frontends.torch.modules.keywords import split


def graph_with(
    *inputs: onnx.ValueInfoProto, initializers: tuple[onnx.TensorProto, ...] = ()
) -> onnx.ModelProto:
    node = helper.make_node("Identity", [inputs[0].name], ["y"])
    output = helper.make_empty_tensor_value_info("y")
    return helper.make_model(helper.make_graph([node], "g", list(inputs), [output], list(initializers)))


def tensor(name: str, kind: int, shape: list[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def test_inputs_that_are_initializers_need_no_value() -> None:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    model = graph_with(
        tensor("x", TensorProto.FLOAT, ["n", 3]), tensor("w", TensorProto.FLOAT, [1]), initializers=(weight,)
    )
    assert input_specs(model) == (InputSpec("x", "float32", (None, 3)),)


def test_a_path_is_read(tmp_path: object) -> None:
    path = f"{tmp_path}/m.onnx"
    onnx.save(graph_with(tensor("x", TensorProto.BFLOAT16, [2])), path)
    assert input_specs(path) == (InputSpec("x", "bfloat16", (2,)),)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileAccessError, match=r"nowhere\.onnx"):
        input_specs("nowhere.onnx")


def test_a_file_that_is_not_onnx_is_named(tmp_path: object) -> None:
    path = f"{tmp_path}/m.onnx"
    with open(path, "wb") as file:
        file.write(b"\xff" * 64)
    with pytest.raises(BadInputError, match=r"m\.onnx: is not an ONNX model"):
        input_specs(path)


def test_strings_have_no_random_values() -> None:
    with pytest.raises(NotSupportedError, match="'x'"):
        input_specs(graph_with(tensor("x", TensorProto.STRING, [1])))


@pytest.mark.parametrize(
    ("dtype", "kind"), [("float16", "f"), ("bfloat16", "V"), ("float64", "f"), ("int64", "i"), ("bool", "b")]
)
def test_values_have_the_type_and_are_seeded(dtype: str, kind: str) -> None:
    spec = InputSpec("x", dtype, (None, 50))
    first, again, other = (make_inputs([spec], seed=seed)["x"] for seed in (1, 1, 2))
    assert first.dtype.name == dtype
    assert first.shape == (2, 50)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    if kind == "i":
        assert set(np.unique(first)) <= set(range(10))


def test_floats_are_standard_normal() -> None:
    values = make_inputs([InputSpec("x", "float32", (100, 100))], seed=0)["x"]
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05


def test_an_open_axis_besides_the_batch_says_how_to_close_it() -> None:
    with pytest.raises(UsageError, match=r"--input-shape x:1x3x224x224"):
        make_inputs([InputSpec("x", "float32", (None, 3, None, None))], seed=0)


def test_an_unknown_rank_says_how_to_close_it() -> None:
    with pytest.raises(UsageError, match=r"--input-shape x:"):
        make_inputs([InputSpec("x", "float32", None)], seed=0)


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (1, 3, 8), (-1, 3, 8, 8)])
def test_a_shape_that_contradicts_the_model_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="does not fit"):
        make_inputs([InputSpec("x", "float32", (None, 3, None, None))], shapes={"x": shape}, seed=0)


def test_a_shape_for_an_input_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(UsageError, match=r"no input 'y'.*x"):
        make_inputs([InputSpec("x", "float32", (1,))], shapes={"y": (1,)}, seed=0)


def test_open_axes_of_the_second_sample_have_another_size() -> None:
    model = graph_with(tensor("x", TensorProto.FLOAT, ["n", 3, "h", "w"]))
    feeds = model_feeds([model], shapes={"x": (1, 3, 64, 20)}, seed=0, samples=2, vary=True)
    assert [sample["x"].shape for sample in feeds] == [(1, 3, 64, 20), (2, 3, 32, 19)]


def test_integers_stay_below_the_size_of_the_table_that_they_index() -> None:
    table = helper.make_tensor("table", TensorProto.FLOAT, [3, 1], [1.0, 2.0, 3.0])
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "wide"], ["y"]),
    ]
    inputs = [tensor("ids", TensorProto.INT32, [500])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_empty_tensor_value_info("y")], [table])
    feeds = model_feeds([helper.make_model(graph)], shapes=None, seed=0, samples=1)
    assert set(np.unique(feeds[0]["ids"])) == {0, 1, 2}


def test_examples_are_used_as_they_are_first_and_their_integers_in_another_order_next() -> None:
    examples = (
        torch.tensor([[1.0, 5.0]]),
        [torch.tensor([7, 3, 3]), None],
        {"mask": torch.tensor([True, False])},
    )
    first, second = model_feeds(
        [torch.nn.ReLU()], shapes=None, seed=0, samples=2, example_inputs=examples, vary=True
    )
    assert [array.tolist() for array in first.values()] == [[[1.0, 5.0]], [7, 3, 3], [True, False]]
    assert sorted(second["input_1"]) == [3, 3, 7]
    assert sorted(second["input_2"]) == [False, True]
    assert not np.array_equal(first["input_0"], second["input_0"])
    assert isinstance(first, Arguments)
    given = first.filled({name: torch.from_numpy(array) for name, array in first.items()})
    assert torch.equal(given[0], examples[0])
    assert given[1][1] is None
    assert torch.equal(given[2]["mask"], examples[2]["mask"])


def test_an_example_of_one_number_gives_a_shape() -> None:
    (sample,) = model_feeds(
        [torch.nn.ReLU()], shapes=None, seed=0, samples=1, example_inputs=(torch.zeros(2, 50),)
    )
    assert sample["input_0"].std() > 0.5


class Keywords(torch.nn.Module):
    def forward(self, x: torch.Tensor, scale: float = 2.0, *, only: int = 0) -> torch.Tensor:
        return x * scale + only


class Taking(torch.nn.Module):
    def forward(self, x: torch.Tensor, **others: object) -> torch.Tensor:
        return x


def test_keywords_become_positional() -> None:
    x = torch.ones(1)
    assert positional(Keywords(), {"x": x}) == (x,)
    assert positional(Keywords(), {"x": x, "scale": 3.0}) == (x, 3.0)
    assert positional(Keywords(), {"y": x}) == ({"y": x},)
    assert positional(Keywords(), x) == (x,)
    assert split(positional(Keywords(), {"x": x, "only": 1}) or ()) == ((x,), {"only": 1})
    assert split(positional(torch.nn.DataParallel(Keywords()), {"only": 1, "x": x}) or ()) == (
        (x,),
        {"only": 1},
    )
    assert positional(Taking(), {"x": x, "y": 1}) == (x, {"y": 1})
    assert positional(Taking(), {"y": 1}) == ({"y": 1},)
    with pytest.raises(UsageError, match="gives no 'x'"):
        positional(Keywords(), {"scale": 1.0})
