"""The parts of the proof of modules: numbers moved by their rounding, weights put off, inputs in float64."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from convbn.bench.proof.gaps import Bound
from convbn.bench.proof.torch.copies import (
    _spoil,
    _unit,
    in_float64,
    moved_by_rounding,
    put_off,
    spoilt_copy,
    wide_feeds,
)
from convbn.bench.proof.torch.modules import _with_bias, other_mode


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 40, 1), nn.BatchNorm2d(40), nn.Conv2d(40, 2, 1)).eval()


def ratios(moved: nn.Module, name: str) -> np.ndarray:
    before = dict(network().named_parameters())[name].double()
    after = dict(moved.named_parameters())[name]
    with torch.no_grad():
        found: np.ndarray = (((after - before) / before) * 2.0**23).numpy().round(6).flatten()
    return found


def test_the_numbers_of_the_named_layers_move_by_their_rounding_and_no_others() -> None:
    random, up = moved_by_rounding(network(), {"0"})
    for moved in (random, up):
        assert all(parameter.dtype == torch.float64 for parameter in moved.parameters())
        assert not ratios(moved, "2.weight").any()
        assert not ratios(moved, "1.weight").any()
    # At random up and down, the same every time; then all of them upwards.
    signs = ratios(random, "0.weight")
    assert set(signs) == {1.0, -1.0}
    assert 30 < (signs > 0).sum() < 90
    assert set(ratios(random, "0.bias")) == {1.0, -1.0}
    np.testing.assert_array_equal(signs, ratios(next(iter(moved_by_rounding(network(), {"0"}))), "0.weight"))
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 2, (40, 3, 1, 1), generator=generator).numpy().flatten() * 2 - 1
    np.testing.assert_array_equal(signs, first)
    for name in ("0.weight", "0.bias"):
        before = dict(network().named_parameters())[name]
        after = dict(up.named_parameters())[name]
        torch.testing.assert_close((after - before) / before.abs(), torch.full_like(after, 2.0**-23))


def test_a_layer_is_moved_by_the_name_that_it_has_in_itself() -> None:
    (_, up) = moved_by_rounding(nn.Linear(3, 2), {""})
    assert isinstance(up, nn.Linear)


def test_units_are_those_of_floats() -> None:
    assert _unit(nn.Parameter(torch.zeros(1))) == 2.0**-23
    assert _unit(nn.Parameter(torch.zeros(1, dtype=torch.float16))) == 2.0**-10
    assert _unit(nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)) == 0.0


def test_the_weight_is_put_off_and_the_bias_is_not() -> None:
    for layer, error in ((nn.Conv2d(3, 4, 1), 0.01), (nn.Conv2d(3, 4, 1).half(), 16 * 2.0**-10)):
        wrong = spoilt_copy(layer)
        np.testing.assert_allclose(
            wrong.weight.detach().numpy(), layer.weight.detach().double().numpy() * (1 + error), rtol=1e-12
        )
        assert torch.equal(wrong.bias, layer.bias.double())
        assert wrong.weight.dtype == torch.float64
    norm = nn.LayerNorm(5)  # has vectors alone
    nn.init.uniform_(norm.bias)
    before = norm.bias.clone()
    assert _spoil(norm)
    torch.testing.assert_close(norm.weight, torch.full((5,), 1.01))
    assert torch.equal(norm.bias, before)
    assert not _spoil(nn.ReLU())
    outer = nn.Sequential(nn.Linear(2, 2))
    assert not _spoil(outer)  # its own numbers, not its children's
    odd = nn.Module()  # its bias comes first
    odd.bias, odd.weight = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 2))
    assert _spoil(odd)
    torch.testing.assert_close((odd.bias, odd.weight), (torch.ones(3), torch.full((3, 2), 1.01)))
    line = nn.Linear(2, 2)
    weight = line.weight.detach().clone()
    assert _spoil(line, 0.5)
    torch.testing.assert_close(line.weight, 1.5 * weight)


def test_weights_are_as_before_when_the_block_is_left() -> None:
    layer = nn.Linear(3, 2)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    with put_off(layer) as has_weights:
        assert has_weights
        assert not torch.equal(layer.weight, weight)
        assert torch.equal(layer.bias, bias)
    assert torch.equal(layer.weight, weight)
    norm = nn.LayerNorm(5)  # has vectors alone
    with put_off(norm):
        assert not torch.equal(norm.weight, torch.ones(5))
    assert torch.equal(norm.weight, torch.ones(5))


def test_a_copy_in_float64_is_its_own_and_trains_nothing() -> None:
    module = network()
    module[1].train()
    wide = in_float64(module)
    assert not any(part.training for part in wide.modules())
    assert module[1].training
    assert module[0].weight.dtype == torch.float32


def test_inputs_are_widened_by_their_kind() -> None:
    given = {
        "f": np.zeros(1, np.float16),
        "c": np.zeros(1, np.complex64),
        "i": np.zeros(1, np.int32),
        "b": np.zeros(1, np.bool_),
    }
    assert [array.dtype.name for array in wide_feeds(given).values()] == [
        "float64",
        "complex128",
        "int32",
        "bool",
    ]


def test_a_bound_holds_what_is_lost_where_a_bias_cancels() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([10.0, -20.0]))
    bound = Bound(np.array([1.0, 2.0]), np.array([3.0, 4.0]), 1)
    wider = _with_bias(bound, layer, 0.5)
    np.testing.assert_array_equal(wider.mean, [1 + 4 * 0.5 * 10, 2 + 4 * 0.5 * 20])
    np.testing.assert_array_equal(wider.rest, bound.rest)
    assert _with_bias(bound, nn.Linear(3, 2, bias=False), 0.5) is bound
    assert _with_bias(bound, nn.Linear(3, 5), 0.5) is bound


def test_modes_are_compared_name_by_name() -> None:
    one, other = network(), network()
    assert other_mode(one, other) is None
    other[1].train()
    assert other_mode(one, other) == "1"
    other[1].eval()
    other.append(nn.Dropout().train())
    assert other_mode(one, other) is None
