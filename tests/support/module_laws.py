"""What holds for the fold of every torch module, each law a function that fails where it does not.

The judge is eager PyTorch on the module as it was given, in float64: what is left of a difference there is the fold's.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convbn.export.torch.save import export_onnx
from convbn.fuse.fold import Folding, fold
from support import graph_laws
from support.graphs import run
from support.random_modules import Drawn

EXACT = 1e-12
"""Of the largest output in float64; what was seen is a thousandth of it."""

STORED = 16 * 2.0**-24
"""Of what is folded in float32 and run in float64, times what the module makes of a change of its numbers."""

SINGLE = 1e-4
"""Of what a runtime computes in float32, or more where the module makes more of a change of its numbers."""

SHAKE = 2.0**-24


def outputs(model: Callable[..., Any], x: Tensor) -> list[Tensor]:
    """What a model gives, computed on an input of its own."""
    with torch.no_grad():
        return [y.clone() for y in model(x.clone())]


def error_of(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """``max|a − b| / max|a|``, the worst of all outputs; where a is 0 throughout, ``max|b|``."""
    assert [y.shape for y in expected] == [y.shape for y in found]
    assert all(y.isfinite().all() for y in expected)
    worst = [0.0]
    for a, b in zip(expected, found, strict=True):
        largest = float(a.abs().max())
        worst.append(float((a.double() - b.double()).abs().max()) / (largest or 1.0))
    return float(np.max(worst))  # NaN where one is, unlike Python's max


def shaken(module: nn.Module, x: Tensor) -> float:
    """How many times the change of its numbers a module's outputs change by, at least 1."""
    other = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            if tensor.is_floating_point():
                signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
                tensor.mul_(1 + SHAKE * signs)
    return max(1.0, error_of(outputs(module, x), outputs(other, x)) / SHAKE)


def check_module(drawn: Drawn) -> None:
    """The module form gives a copy of the same structure that computes the same."""
    module, x = _widened(drawn)
    _check_module(module, x, (x,))


def check_traced(drawn: Drawn) -> None:
    """So it does where no inputs are given and no shape is known."""
    _check_module(*_widened(drawn), None)


def _check_module(module: nn.Module, x: Tensor, given: tuple[Tensor] | None) -> None:
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    text, flags = repr(module), [part.training for part in module.modules()]
    expected = outputs(module, x)

    result = fold(module, given)

    assert (text, flags) == (repr(module), [part.training for part in module.modules()])
    _same_state(state, module)
    assert error_of(expected, outputs(result.model, x)) < EXACT
    _same_structure(module, result)
    told = [entry.name for entry in (*result.report.folded, *result.report.kept)]
    assert len(told) == len(set(told)) == result.report.batchnorm.before
    assert {_layer(name) for name in told} == _norms_in(module)
    assert {_layer(entry.name) for entry in result.report.kept} == _norms_in(result.model)
    _explained(result)

    again = fold(result.model, given)
    assert not again.report.folded
    kept, before = again.report.kept, result.report.kept
    assert [entry.name for entry in kept] == [entry.name for entry in before]
    if given is not None:  # without inputs, a BatchNorm that has gone no longer says of what rank its data is
        assert [entry.reason for entry in kept] == [entry.reason for entry in before]
    _same_state(result.model.state_dict(), again.model)


def check_program(drawn: Drawn) -> None:
    """The graph form of what torch.export makes of the module computes the same."""
    module, x = _widened(drawn)
    program = _exported(module, x)
    state = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    code, expected = program.graph_module.code, outputs(module, x)

    result = fold(program)

    assert program.graph_module.code == code
    assert state.keys() == program.state_dict.keys()
    assert all(torch.equal(tensor, program.state_dict[name]) for name, tensor in state.items())
    assert error_of(expected, outputs(result.model.module(), x)) < EXACT
    told = [entry.name for entry in (*result.report.folded, *result.report.kept)]
    assert len(told) == len(set(told)) == _norms(program)
    assert _norms(result.model) == len(result.report.kept)
    _explained(result)

    again = fold(result.model)
    assert not again.report.folded
    assert again.model.graph_module.code == result.model.graph_module.code
    assert all(torch.equal(t, again.model.state_dict[name]) for name, t in result.model.state_dict.items())


def check_in_float32(drawn: Drawn) -> None:
    """A fold in float32 changes what its own roundings change."""
    folded = fold(drawn, (drawn.example(),)).model
    exact, x = _widened(drawn)
    assert all(t.dtype == torch.float32 for t in folded.state_dict().values() if t.is_floating_point())
    error = error_of(outputs(exact, x), outputs(folded.double(), x))
    assert error < STORED or error < STORED * shaken(exact, x)


def check_through_onnx(drawn: Drawn) -> None:
    """The module as ONNX graph, folded as such and run by onnxruntime, gives what PyTorch gives without either."""
    exact, x = _widened(drawn)
    built = export_onnx(drawn, drawn.example())
    before = graph_laws.batchnorms(built)
    result = fold(built)
    assert result.report.batchnorm.before == before
    assert result.report.batchnorm.after == graph_laws.batchnorms(result.model)
    _explained(result)
    graph_laws.check_again(result.model)
    feeds = {built.graph.input[0].name: drawn.example().numpy()}
    found = [torch.from_numpy(array) for array in run(result.model, feeds)]
    error = error_of(outputs(exact, x), found)
    assert error < SINGLE or error < SINGLE * shaken(exact, x)


def _widened(drawn: Drawn) -> tuple[Drawn, Tensor]:
    return copy.deepcopy(drawn).double(), drawn.example().double()


def _exported(module: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module, (x,), strict=False)


def _norms(program: torch.export.ExportedProgram) -> int:
    return sum("batch_norm" in str(node.target) for node in program.graph.nodes)


def _norms_in(module: nn.Module) -> set[str]:
    return {name for name, part in module.named_modules() if isinstance(part, _BatchNorm)}


def _layer(name: str) -> str:
    """What is called several times is told call by call."""
    return name.partition(" (call ")[0]


def _explained(result: Folding) -> None:
    assert all(entry.reason and entry.detail for entry in result.report.kept)
    assert all(entry.into and entry.rule for entry in result.report.folded)


def _same_state(state: dict[str, Tensor], module: nn.Module) -> None:
    after = module.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in state.items())


def _same_structure(module: nn.Module, result: Folding) -> None:
    """Class, names and kinds of layers stay, but for those that went; no key comes but what a layer had none of."""
    folded, gone = result.model, _norms_in(module) - _norms_in(result.model)
    assert type(folded) is type(module)
    before, after = dict(module.named_modules()), dict(folded.named_modules())
    assert before.keys() == after.keys()
    for name, part in before.items():
        assert type(after[name]) is (nn.Identity if name in gone else type(part))
    keys, old = set(folded.state_dict()), set(module.state_dict())
    assert old - keys == {key for key in old if key.rpartition(".")[0] in gone}
    for key in keys - old:
        name, _, kind = key.rpartition(".")
        assert kind == "bias" or (kind == "weight" and isinstance(before[name], _BatchNorm))
        assert getattr(before[name], kind) is None
    folded.load_state_dict(folded.state_dict())
