"""Random torch modules for property tests: layers and calls as they are drawn, run in order by one forward."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

CONV = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
TRANSPOSED = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}
NORM = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
MAX = {3: nn.MaxPool1d, 4: nn.MaxPool2d, 5: nn.MaxPool3d}
AVERAGE = {3: nn.AvgPool1d, 4: nn.AvgPool2d, 5: nn.AvgPool3d}
WHOLE = {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d, 5: nn.AdaptiveAvgPool3d}

CALLS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu in place": lambda x: F.relu(x, inplace=True),
    "relu_": torch.relu_,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "clamp": lambda x: x.clamp(-1.0, 1.5),  # torch.onnx takes bounds of one type only
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "iadd": operator.iadd,
    "add_": lambda x, y: x.add_(y),
    "half": lambda x, y: torch.add(x, y, alpha=0.5),
    "cat": lambda x, y: torch.cat([x, y], 1),
    "first half": lambda x: x.chunk(2, dim=1)[0],
    "last half": lambda x: x[:, x.shape[1] // 2 :],
    "flatten": lambda x: x.flatten(1),
    # Axes in the code: a tracer without inputs does not know how many there are.
    "mean 3": lambda x: x.mean(2),
    "mean 4": lambda x: x.mean((2, 3)),
    "mean 5": lambda x: x.mean((2, 3, 4)),
    "pad": lambda x: F.pad(x, (1, 1)),
    "double": lambda x: x * 2,
    "turn": lambda x: x.transpose(1, -1),
}
IN_PLACE = {"relu in place", "relu_", "iadd", "add_"}
SHOW_THE_SAME = {"first half", "last half", "flatten", "turn", *IN_PLACE}
"""Calls whose result may be memory of what they are given."""


@dataclass(frozen=True)
class Step:
    """One call: of the layer ``part``, or of what ``call`` names, on the values numbered so."""

    call: str
    part: str
    operands: tuple[int, ...]


class Drawn(nn.Module):
    """Layers under their names, and a forward that is a list of steps."""

    def __init__(self, shape: tuple[int, ...], seed: int) -> None:
        super().__init__()
        self.shape, self.seed = shape, seed
        self.steps: tuple[Step, ...] = ()
        self.outputs: tuple[int, ...] = ()

    def example(self) -> Tensor:
        """An input, in float32."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(self.seed))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x]
        for step in self.steps:
            operands = [values[i] for i in step.operands]
            call = getattr(self, step.part) if step.part else CALLS[step.call]
            values.append(call(*operands))
        return tuple(values[i] for i in self.outputs)

    def extra_repr(self) -> str:
        return f"{self.shape}: {[(step.part or step.call, *step.operands) for step in self.steps]} -> {self.outputs}"


class UnfitError(Exception):
    """No value is such as the step needs."""


@dataclass
class Growth:
    """A module as it grows: what its forward has computed so far, for one input."""

    draw: Any
    values: list[Tensor]
    steps: list[Step] = field(default_factory=list)
    parts: dict[str, nn.Module] = field(default_factory=dict)
    roots: list[int] = field(default_factory=lambda: [0])

    def of(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def pick(self, least: int = 2) -> int:
        """Mostly the newest value, so that chains form; sometimes an older one, so that they branch."""
        fitting = [i for i, value in enumerate(self.values) if value.dim() >= least]
        if not fitting:
            raise UnfitError
        return int(fitting[self.of(-1, -1, -1, *range(len(fitting)))])

    def shape(self, i: int) -> list[int]:
        return list(self.values[i].shape)

    def layer(self, part: nn.Module, i: int) -> int:
        name = f"{type(part).__name__.lower()}{len(self.parts)}"
        self.parts[name] = part.eval()
        return self.call_layer(name, i)

    def call_layer(self, name: str, i: int) -> int:
        part = self.parts[name]
        same = isinstance(part, nn.Dropout | nn.Identity) or getattr(part, "inplace", False)
        return self._add(Step("", name, (i,)), part(self.values[i]), same)

    def call(self, name: str, *operands: int) -> int:
        result = CALLS[name](*(self.values[i] for i in operands))
        return self._add(Step(name, "", operands), result, name in SHOW_THE_SAME)

    def _add(self, step: Step, result: Tensor, same: bool) -> int:
        self.steps.append(step)
        self.values.append(result)
        self.roots.append(self.roots[step.operands[0]] if same else len(self.roots))
        return len(self.values) - 1

    def may_write(self, i: int) -> bool:
        """Not into the caller's input."""
        return self.roots[i] != 0


def conv(g: Growth) -> None:
    i = g.pick(3)
    _, c, *space = g.shape(i)
    groups = g.of(1, 1, 1, c, *([2] if c % 2 == 0 else []))
    outputs = groups * g.of(1, 2) if groups > 1 else g.of(c, 4, 6)
    k, stride, dilation = g.of(1, 1, 2, 3), g.of(1, 1, 2), g.of(1, 1, 2)
    padding = g.of(0, 1, k // 2, "same") if stride == 1 else g.of(0, 1, k // 2)
    mode = g.of("zeros", "zeros", "zeros", "reflect", "replicate", "circular")
    border = dilation * (k - 1) if padding == "same" else 2 * padding
    if min(space) + border <= dilation * (k - 1) or (mode != "zeros" and min(space) <= border):
        return
    settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    layer = CONV[2 + len(space)]
    g.layer(layer(c, outputs, k, padding_mode=mode, bias=g.of(True, False), **settings), i)
    if g.of(True, True, False):
        normalise(g, len(g.values) - 1)


def conv_transpose(g: Growth) -> None:
    i = g.pick(3)
    _, c, *space = g.shape(i)
    if max(space) > 10:
        return
    groups = g.of(1, 1, c, *([2] if c % 2 == 0 else []))
    stride, padding = g.of(1, 2), g.of(0, 0, 1)
    if min(space) < 2:
        padding = 0
    settings = {"stride": stride, "padding": padding, "output_padding": stride - 1, "groups": groups}
    layer = TRANSPOSED[2 + len(space)]
    g.layer(layer(c, groups * g.of(1, 2), g.of(2, 3), bias=g.of(True, False), **settings), i)
    if g.of(True, True, False):
        normalise(g, len(g.values) - 1)


def linear(g: Growth) -> None:
    i = g.pick()
    if len(g.shape(i)) > 2 and g.of(True, False):
        i = g.call("flatten", i)
    size = g.shape(i)[-1]
    if size <= 300:
        g.layer(nn.Linear(size, g.of(3, 4, 6), bias=g.of(True, False)), i)


def batchnorm(g: Growth) -> None:
    normalise(g, g.pick())


def normalise(g: Growth, i: int, *, fresh: bool = False) -> int:
    shape = g.shape(i)
    norm = NORM[len(shape)]
    same = [name for name, part in g.parts.items() if type(part) is norm and part.num_features == shape[1]]
    if same and not fresh and g.of(True, *[False] * 5):
        return g.call_layer(g.of(*same), i)
    return g.layer(norm(shape[1], eps=g.of(1e-5, 1e-3), affine=g.of(True, True, True, False)), i)


def again(g: Growth) -> None:
    """A layer a second time, on anything that it takes."""
    if g.parts:
        name, i = g.of(*g.parts), g.pick()
        writes = getattr(g.parts[name], "inplace", False)
        size = g.values[i].shape
        before = [s.operands[0] for s in g.steps if s.part == name]
        if any(g.values[b].shape == size for b in before) and (g.may_write(i) or not writes):
            g.call_layer(name, i)


def activation(g: Growth) -> None:
    i = g.pick()
    c = g.shape(i)[1]
    layers = [nn.ReLU(), nn.LeakyReLU(0.1), nn.Hardswish(), nn.PReLU(g.of(1, c)), nn.Dropout(), nn.Identity()]
    layers += [nn.ReLU(inplace=True), nn.LeakyReLU(0.2, inplace=True), nn.Hardswish(inplace=True)]
    calls = ("relu", "hardswish", "sigmoid", "clamp", "double", "relu in place", "relu_")
    if g.of(True, True, False):
        layer = g.of(*layers)
        if g.may_write(i) or not getattr(layer, "inplace", False):
            g.layer(layer, i)
    else:
        call = g.of(*calls)
        if g.may_write(i) or call not in IN_PLACE:
            g.call(call, i)


def combine(g: Growth) -> None:
    i = g.pick()
    other = g.of(*[k for k, value in enumerate(g.values) if value.shape == g.values[i].shape])
    call = g.of("add", "add", "sub", "mul", "half", "iadd", "iadd", "add_")
    if g.may_write(i) or call not in IN_PLACE:
        g.call(call, i, other)


def concat(g: Growth) -> None:
    i = g.pick()
    n, _, *space = g.shape(i)
    g.call("cat", i, g.of(*[k for k in range(len(g.values)) if g.shape(k) == [n, g.shape(k)[1], *space]]))


def part_of(g: Growth) -> None:
    i = g.pick()
    if g.shape(i)[1] >= 2:
        g.call(g.of("first half", "last half"), i)


def rearrange(g: Growth) -> None:
    i = g.pick(3)
    if max(g.shape(i)) <= 12:
        g.call(g.of("pad", "turn"), i)


def pool(g: Growth) -> None:
    i = g.pick(3)
    _, _, *space = g.shape(i)
    rank, kind = 2 + len(space), g.of("max", "average", "whole", "mean")
    if kind == "mean":
        g.call(f"mean {rank}", i)
    elif kind == "whole":
        g.layer(WHOLE[rank](1), i)
    elif min(space) >= 2:
        layer = MAX[rank] if kind == "max" else AVERAGE[rank]
        g.layer(layer(2, stride=g.of(1, 2), padding=g.of(0, 1)), i)


def residual(g: Growth) -> None:
    """``relu(bn(conv(relu(bn(conv(x))))) + x)``, or the order of a pre-activation block; in place or not."""
    i = g.pick(3)
    c, rank = g.shape(i)[1], len(g.shape(i))
    inner = i
    early = g.of(True, False)
    for _ in range(g.of(1, 2)):
        if not early:
            inner = g.layer(CONV[rank](c, c, 3, padding=1, bias=False), inner)
        inner = normalise(g, inner)
        if early:
            inner = g.layer(nn.ReLU(inplace=g.of(True, False)), inner)
            inner = g.layer(CONV[rank](c, c, 1, bias=False), inner)
    summed = g.call(g.of("add", "iadd"), inner, i)
    if not early:
        g.layer(nn.ReLU(inplace=g.of(True, False)), summed)


def stream(g: Growth) -> None:
    """A stem, pre-activation blocks ``h + conv(act(bn(h)))`` and a head: what all read takes the scales."""
    i = g.pick(3)
    rank, c = len(g.shape(i)), g.shape(i)[1]
    h = g.layer(CONV[rank](c, 4, 1, bias=g.of(True, False)), i)
    call = g.of("", "", "relu_", "relu in place")
    for last in (*[False] * g.of(1, 2), True):
        inner = normalise(g, h, fresh=True)
        inner = g.call(call, inner) if call else g.layer(g.of(nn.ReLU, nn.LeakyReLU)(inplace=True), inner)
        inner = g.layer(CONV[rank](4, 4, 1, bias=g.of(True, False)), inner)
        h = inner if last else g.call(g.of("add", "add", "iadd"), *g.of((h, inner), (inner, h)))


STEPS: list[Callable[[Growth], None]] = [conv, conv, conv, batchnorm, batchnorm, activation, activation]
STEPS += [
    combine,
    combine,
    concat,
    part_of,
    rearrange,
    pool,
    linear,
    conv_transpose,
    again,
    residual,
    residual,
]


@st.composite
def modules(draw: Any, longest: int = 9) -> Drawn:
    """A module in eval mode, in float32."""
    shape = draw(
        st.sampled_from([(2, 4, 6, 6), (2, 4, 6, 6), (1, 6, 5, 7), (3, 5, 9), (2, 4, 3, 4, 5), (3, 6)])
    )
    seed = draw(st.integers(0, 10_000))
    built = Drawn(shape, seed)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        g = Growth(draw, [built.example()])
        few = [*draw(st.lists(st.sampled_from(STEPS), min_size=2, max_size=5)), conv, batchnorm]
        steps = draw(st.sampled_from([STEPS, few]))
        for _ in range(draw(st.integers(2, longest))):
            with suppress(UnfitError):
                draw(st.sampled_from(steps))(g)
            if g.values[-1].numel() > 20_000:
                break
        if not any(isinstance(part, _BatchNorm) for part in g.parts.values()):
            normalise(g, len(g.values) - 1)
    read = {i for step in g.steps for i in step.operands}
    outputs = [i for i in range(1, len(g.values)) if i not in read]
    if draw(st.booleans()):
        outputs.append(draw(st.sampled_from(range(1, len(g.values)))))
    built.steps, built.outputs = tuple(g.steps), tuple(dict.fromkeys(outputs))
    for name, part in g.parts.items():
        built.add_module(name, part)
    randomise(built, seed, draw(st.booleans()))
    return built.eval()


def randomise(module: nn.Module, seed: int, positive: bool) -> None:
    """Statistics and scales that a wrong fold cannot hide behind, of both signs but where γ is ``positive``."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, _BatchNorm):
                assert part.running_mean is not None
                assert part.running_var is not None
                part.running_mean.copy_(torch.randn(part.num_features, generator=generator))
                part.running_var.copy_(torch.rand(part.num_features, generator=generator) * 2 + 0.2)
                if part.affine:
                    part.weight.copy_(torch.randn(part.num_features, generator=generator) + 0.3)
                    if positive:
                        part.weight.abs_()
                    part.bias.copy_(torch.randn(part.num_features, generator=generator))
