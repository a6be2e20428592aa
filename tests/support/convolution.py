"""A convolution by its definition, in float64."""

from __future__ import annotations

import itertools

import numpy as np

from convbn.fuse.algebra.kernels import Form
from convbn.fuse.view.op import Window


def form(
    *shape: int,
    groups: int = 1,
    strides: tuple[int, ...] = (),
    dilations: tuple[int, ...] = (),
    begin: tuple[int, ...] = (),
    end: tuple[int, ...] = (),
) -> Form:
    """Of a weight of this shape; without padding, with steps of 1, unless said otherwise."""
    ones, zeros = (1,) * (len(shape) - 2), (0,) * (len(shape) - 2)
    return Form(shape, groups, Window(strides or ones, dilations or ones, begin or zeros, end or zeros))


def convolved(x: np.ndarray, at: Form, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """``y[o, p] = Σ_c Σ_i W[o, c, i] · x[c, p·stride + i·dilation − begin] + b[o]`` for x ``[N, C, *S]``."""
    window, kernel = at.window, at.shape[2:]
    ends = [(0, 0), (0, 0), *zip(window.begin, window.end, strict=True)]
    padded = np.pad(x, ends).reshape(x.shape[0], at.groups, at.shape[1], *np.pad(x, ends).shape[2:])
    grouped = weight.reshape(at.groups, -1, *at.shape[1:])
    sizes = [
        (n - step * (k - 1) - 1) // stride + 1
        for n, step, k, stride in zip(padded.shape[3:], window.dilations, kernel, window.strides, strict=True)
    ]
    result = np.zeros((x.shape[0], at.groups, grouped.shape[1], *sizes))
    for taps in itertools.product(*map(range, kernel)):
        seen = tuple(
            slice(tap * step, tap * step + stride * (size - 1) + 1, stride)
            for tap, step, stride, size in zip(taps, window.dilations, window.strides, sizes, strict=True)
        )
        tap = grouped[(..., *taps)]
        result += np.einsum("ngc...,goc->ngo...", padded[(..., *seen)], tap)
    result = result.reshape(x.shape[0], at.shape[0], *sizes)
    return result if bias is None else result + bias.reshape(-1, *[1] * len(sizes))
