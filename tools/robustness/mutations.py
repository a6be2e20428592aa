"""Ways to break a model: structure, values, sizes, names, external data, bytes. Each is seeded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from robustness.model_generator import Specimen, grow

__all__ = ["MUTATIONS", "Mutant", "mutant"]

MODEL, DATA = "model.onnx", "weights.bin"
HUGE = 1 << 40


@dataclass
class Mutant:
    """Files to lay into an empty folder; ``model.onnx`` is the input.

    Attributes:
        seed: that grows it again.
        mutation: its name.
        files: by name.
        links: symbolic links by name, to paths relative to the folder.
    """

    seed: int
    mutation: str
    files: dict[str, bytes]
    links: dict[str, str] = field(default_factory=dict)

    def lay(self, folder: Path) -> Path:
        """Write it; the model's path."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        for name, target in self.links.items():
            os.symlink(target, folder / name)
        return folder / MODEL


Edit = Callable[[np.random.Generator, onnx.ModelProto], None]


def mutant(seed: int) -> Mutant:
    """The mutant that this number stands for."""
    rng = np.random.default_rng([seed, 1])
    specimen = grow(seed)
    name = list(MUTATIONS)[seed % len(MUTATIONS)]
    return MUTATIONS[name](rng, specimen, seed, name)


def _nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Every node of the main graph and of branches."""
    found = list(model.graph.node)
    for node in found:
        found.extend(inner for a in node.attribute if a.HasField("g") for inner in a.g.node)
    return found


def _tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    inside = (a.g for node in _nodes(model) for a in node.attribute if a.HasField("g"))
    return [t for graph in (model.graph, *inside) for t in graph.initializer]


T = TypeVar("T")


def _pick(rng: np.random.Generator, items: list[T]) -> T:
    return items[int(rng.integers(len(items)))]


def _node(rng: np.random.Generator, model: onnx.ModelProto) -> onnx.NodeProto:
    return _pick(rng, _nodes(model))


def _floats(rng: np.random.Generator, model: onnx.ModelProto) -> onnx.TensorProto:
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16)
    tensors = [t for t in _tensors(model) if t.data_type in kinds and t.HasField("raw_data")]
    return _pick(rng, tensors or _tensors(model))


# --- structure --------------------------------------------------------------------------------------


def nothing(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    """The control: a sound model."""


def drop_node(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    del model.graph.node[int(rng.integers(len(model.graph.node)))]


def repeat_node(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    model.graph.node.add().CopyFrom(_pick(rng, list(model.graph.node)))


def rewire(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    names = [o for n in _nodes(model) for o in n.output] + [t.name for t in _tensors(model)] + ["x"]
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = _pick(rng, names)


def cycle(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    if node.input:
        node.input[0] = _pick(rng, list(_nodes(model)[-1].output))


def dangling(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = "nowhere"


def empty_input(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    if node.input:
        node.input[int(rng.integers(len(node.input)))] = ""


def too_few_inputs(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    del node.input[int(rng.integers(len(node.input) + 1)) :]


def too_many_inputs(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    node.input.extend([_pick(rng, _tensors(model)).name] if _tensors(model) else ["x"])


def shuffle(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes[i] for i in rng.permutation(len(nodes)))


def same_output_twice(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    node.output[0] = _pick(rng, _nodes(model)).output[0]


def no_outputs(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def unknown_output(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    model.graph.output.add().CopyFrom(helper.make_tensor_value_info("nowhere", TensorProto.FLOAT, None))


def inner_output(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    """Any value or weight of the main graph becomes an output too."""
    names = [o for n in model.graph.node for o in n.output] + [t.name for t in model.graph.initializer]
    kind = model.graph.input[0].type.tensor_type.elem_type
    model.graph.output.add().CopyFrom(helper.make_tensor_value_info(_pick(rng, names), kind, None))


def weight_as_input(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    if model.graph.initializer:
        tensor = _pick(rng, list(model.graph.initializer))
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.add().CopyFrom(value)


def share_weights(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    """Two nodes read one parameter: whichever slot it is, shapes may or may not fit."""
    pairs = [(n, i) for n in _nodes(model) for i in range(1, len(n.input))]
    if len(pairs) > 1:
        (one, i), (two, j) = _pick(rng, pairs), _pick(rng, pairs)
        one.input[i] = two.input[j]


def drop_initializer(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    if model.graph.initializer:
        del model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]


def repeat_initializer(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    if model.graph.initializer:
        model.graph.initializer.add().CopyFrom(_pick(rng, list(model.graph.initializer)))


def other_operator(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    names = [
        "Relu",
        "Conv",
        "ConvTranspose",
        "BatchNormalization",
        "Gemm",
        "MatMul",
        "Concat",
        "Nothing",
        "",
        "If",
    ]
    _node(rng, model).op_type = _pick(rng, names)


def other_domain(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    _node(rng, model).domain = _pick(rng, ["com.example", "ai.onnx.ml", "local", "ai.onnx"])


def opsets(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    choice = int(rng.integers(4))
    if choice == 0:
        del model.opset_import[:]
    elif choice == 1:
        model.opset_import[0].version = _pick(rng, [0, -1, 1, 5, 6, 999, HUGE])
    elif choice == 2:
        model.opset_import.add(domain="", version=12)
    else:
        model.ir_version = _pick(rng, [0, 1, 2, 3, 4, 99, HUGE])


def drop_attribute(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    del _node(rng, model).attribute[:]


def odd_attribute(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    odd: list[tuple[str, object]] = [
        ("pads", [-1, -1, -1, -1]),
        ("pads", [1, 1, 1]),
        ("pads", [HUGE] * 4),
        ("strides", [0, 0]),
        ("strides", [-1, 1]),
        ("dilations", [0, 1]),
        ("group", 0),
        ("group", -1),
        ("group", 3),
        ("group", HUGE),
        ("epsilon", float("nan")),
        ("epsilon", -5.0),
        ("epsilon", 1e30),
        ("epsilon", "small"),
        ("training_mode", 1),
        ("spatial", 0),
        ("is_test", 0),
        ("auto_pad", "SAME_UPPER"),
        ("auto_pad", "SOMEHOW"),
        ("axis", 99),
        ("kernel_shape", [0, 0]),
        ("ceil_mode", 1),
        ("momentum", float("inf")),
    ]
    node, (name, value) = _node(rng, model), _pick(rng, odd)
    for attribute in [a for a in node.attribute if a.name == name]:
        node.attribute.remove(attribute)
    node.attribute.append(helper.make_attribute(name, value))


def mistyped_attribute(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    node = _node(rng, model)
    if node.attribute:
        attribute = _pick(rng, list(node.attribute))
        attribute.type = _pick(
            rng,
            [AttributeProto.FLOAT, AttributeProto.STRING, AttributeProto.GRAPH, 0, AttributeProto.TYPE_PROTO],
        )


def batchnorm_outputs(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    nodes = [n for n in _nodes(model) if n.op_type == "BatchNormalization"]
    if nodes:
        node = _pick(rng, nodes)
        node.output.extend(["mean_out", "var_out"][: int(rng.integers(1, 3))])


def recursive_function(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    opsets = [model.opset_import[0], helper.make_opsetid("loop", 1)]
    call = helper.make_node("F", ["a"], ["b"], domain="loop")
    model.functions.append(helper.make_function("loop", "F", ["a"], ["b"], [call], opsets))
    model.opset_import.append(helper.make_opsetid("loop", 1))
    node = model.graph.node[-1]
    fresh = helper.make_node("F", [node.output[0]], ["again"], domain="loop")
    model.graph.node.append(fresh)
    model.graph.output[0].name = "again"


def nested_branches(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    kind = model.graph.input[0].type.tensor_type.elem_type
    value = helper.make_tensor_value_info("deep", kind, None)
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["deep"])], "g", [], [value])
    for _ in range(int(_pick(rng, [3, 12, 24]))):
        node = helper.make_node("If", ["cond"], ["deep"], then_branch=body, else_branch=_leaf(value))
        body = helper.make_graph([node], "g", [], [value])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "cond"))
    model.graph.node.extend(body.node)
    model.graph.output.append(value)


def _leaf(value: onnx.ValueInfoProto) -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["x"], ["deep"])], "leaf", [], [value])


def bomb(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    """A few bytes that ask for terabytes when they are run."""
    kind = model.graph.input[0].type.tensor_type.elem_type
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "bomb_shape")
    model.graph.initializer.append(shape)
    zero = helper.make_tensor("zero", kind, [1], b"\0" * (2 if kind == TensorProto.FLOAT16 else 4), raw=True)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["bomb_shape"], ["bomb"], value=zero))
    model.graph.output.append(helper.make_tensor_value_info("bomb", kind, None))


def long_chain(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    last = model.graph.output[0].name
    for i in range(3000):
        model.graph.node.append(helper.make_node("Relu", [last], [f"chain{i}"]))
        last = f"chain{i}"
    model.graph.output[0].name = last


# --- values -----------------------------------------------------------------------------------------


def odd_values(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    tensor = _floats(rng, model)
    if not tensor.HasField("raw_data"):
        return
    array = numpy_helper.to_array(tensor).copy()
    choices = [np.nan, np.inf, -np.inf, 0.0, -1.0, 1e-30, 6e4, 3e38, -3e38, 1e-45]
    with np.errstate(over="ignore"):
        if rng.random() < 0.5:
            array[...] = _pick(rng, choices)
        elif array.size:
            array.flat[int(rng.integers(array.size))] = _pick(rng, choices)
    tensor.raw_data = array.tobytes()


# --- sizes ------------------------------------------------------------------------------------------


def odd_dims(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    tensors = _tensors(model)
    if not tensors:
        return
    tensor = _pick(rng, tensors)
    odd = _pick(
        rng, [[-1], [-4, -3], [HUGE], [HUGE, HUGE], [1 << 62, 4], [0], [3], [], [1] * 70, [2, 2, 1, 1]]
    )
    tensor.dims[:] = odd


def odd_bytes(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    tensor = _floats(rng, model) if _tensors(model) else None
    if tensor is not None and tensor.HasField("raw_data"):
        raw = tensor.raw_data
        tensor.raw_data = _pick(rng, [raw[:-1], raw[:-4], raw + b"\0", raw + raw, b"", raw[: len(raw) // 2]])


def odd_type(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    if _tensors(model):
        _pick(rng, _tensors(model)).data_type = int(
            _pick(rng, [0, 2, 7, 8, 9, 10, 11, 14, 16, 17, 22, 23, 99, -1])
        )


def odd_input(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    shape = model.graph.input[0].type.tensor_type
    choice = int(rng.integers(5))
    if choice == 0:
        shape.ClearField("shape")
    elif choice == 1:
        shape.shape.dim[0].dim_value = int(_pick(rng, [0, -1, HUGE, 1 << 20]))
    elif choice == 2:
        shape.shape.dim[1].dim_value = int(_pick(rng, [0, 1, 3, HUGE]))
    elif choice == 3:
        shape.elem_type = int(_pick(rng, [0, 7, 8, 11, 16, 99]))
    else:
        model.graph.input[0].type.ClearField("tensor_type")


# --- names ------------------------------------------------------------------------------------------


def hostile_names(rng: np.random.Generator, model: onnx.ModelProto) -> None:
    name = _pick(
        rng,
        [
            "<script>alert(1)</script>",
            "a|b\n\n# c",
            "\x1b[2J\x1b[31m",
            "\u202egnp.exe",
            "=cmd|' /C calc'!A0",
            "n" * 5000,
        ],
    )
    node = _node(rng, model)
    old = node.output[0]
    node.name = name
    for other in _nodes(model):
        other.input[:] = [name if i == old else i for i in other.input]
    node.output[0] = name
    for output in model.graph.output:
        output.name = name if output.name == old else output.name


EDITS: list[Edit] = [
    nothing,
    drop_node,
    repeat_node,
    rewire,
    cycle,
    dangling,
    empty_input,
    too_few_inputs,
    too_many_inputs,
    shuffle,
    same_output_twice,
    no_outputs,
    unknown_output,
    inner_output,
    weight_as_input,
    share_weights,
    drop_initializer,
    repeat_initializer,
    other_operator,
    other_domain,
    opsets,
    drop_attribute,
    odd_attribute,
    mistyped_attribute,
    batchnorm_outputs,
    recursive_function,
    nested_branches,
    bomb,
    long_chain,
    odd_values,
    odd_dims,
    odd_bytes,
    odd_type,
    odd_input,
    hostile_names,
]


# --- bytes and files --------------------------------------------------------------------------------


def _files(specimen: Specimen) -> dict[str, bytes]:
    files = {MODEL: specimen.model.SerializeToString(deterministic=True)}
    return files if specimen.data is None else {**files, DATA: specimen.data}


def truncated(rng: np.random.Generator, specimen: Specimen, seed: int, name: str) -> Mutant:
    files = _files(specimen)
    whole = files[MODEL]
    keep = _pick(
        rng,
        [0, len(whole) // 10, len(whole) // 2, len(whole) * 9 // 10, len(whole) * 99 // 100, len(whole) - 1],
    )
    return Mutant(seed, name, {**files, MODEL: whole[:keep]})


def flipped(rng: np.random.Generator, specimen: Specimen, seed: int, name: str) -> Mutant:
    files = _files(specimen)
    content = bytearray(files[MODEL])
    for _ in range(int(rng.integers(1, 12))):
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    return Mutant(seed, name, {**files, MODEL: bytes(content)})


def garbage(rng: np.random.Generator, specimen: Specimen, seed: int, name: str) -> Mutant:
    return Mutant(seed, name, {MODEL: rng.bytes(int(rng.integers(1, 4000)))})


def trailing(rng: np.random.Generator, specimen: Specimen, seed: int, name: str) -> Mutant:
    files = _files(specimen)
    return Mutant(seed, name, {**files, MODEL: files[MODEL] + rng.bytes(int(rng.integers(1, 64)))})


def spliced(rng: np.random.Generator, specimen: Specimen, seed: int, name: str) -> Mutant:
    """A run of bytes is taken out or put in twice."""
    files = _files(specimen)
    content = files[MODEL]
    a, b = sorted(int(n) for n in rng.integers(0, len(content), 2))
    return Mutant(
        seed,
        name,
        {**files, MODEL: content[:a] + content[b:] if rng.random() < 0.5 else content[:b] + content[a:]},
    )


def external(rng: np.random.Generator, specimen: Specimen, seed: int, name: str) -> Mutant:
    """What a reference to external data may be."""
    if specimen.data is None:
        from robustness.model_generator import _externalise

        if not specimen.model.graph.initializer:
            return Mutant(seed, name, _files(specimen))
        _externalise(specimen)
    tensors = [t for t in specimen.model.graph.initializer if t.external_data]
    tensor, data, links = _pick(rng, tensors), specimen.data or b"", {}
    entry = {pair.key: pair for pair in tensor.external_data}
    files = {DATA: data}
    choice = int(rng.integers(10))
    if choice == 0:
        files = {}
    elif choice == 1:
        files = {DATA: data[:-1]}
    elif choice == 2:
        entry["location"].value = "../weights.bin"
    elif choice == 3:
        entry["location"].value = "/etc/passwd"
    elif choice == 4:
        entry["location"].value, links = "link.bin", {"link.bin": "/etc/passwd"}
    elif choice == 5:
        entry["offset"].value = str(_pick(rng, [-1, 1, 3, HUGE, "many"]))
    elif choice == 6:
        entry["length"].value = str(_pick(rng, [-1, 0, 1, HUGE, "much"]))
    elif choice == 7:
        tensor.external_data.remove(entry["location"])
    elif choice == 8:
        entry["location"].value = _pick(rng, ["", ".", "sub/weights.bin", "weights.bin\0", "w" * 300])
    else:
        entry["offset"].value = "0"  # laps over another tensor
    return Mutant(seed, name, {MODEL: specimen.model.SerializeToString(deterministic=True), **files}, links)


Mutation = Callable[[np.random.Generator, Specimen, int, str], Mutant]


def _by_edit(edit: Edit) -> Mutation:
    def make(rng: np.random.Generator, specimen: Specimen, seed: int, name: str) -> Mutant:
        edit(rng, specimen.model)
        return Mutant(seed, name, _files(specimen))

    return make


MUTATIONS: dict[str, Mutation] = {
    **{edit.__name__.replace("_", "-"): _by_edit(edit) for edit in EDITS},
    "truncated": truncated,
    "flipped": flipped,
    "garbage": garbage,
    "trailing": trailing,
    "spliced": spliced,
    "external": external,
    "flipped-again": flipped,
    "spliced-again": spliced,
}
