"""Two linear layers in a row: one layer whose kernel is the product of both.

``W₂ ⋆ (W₁ ⋆ x + b₁) + b₂`` is the convolution of x with the composed kernel where one of the two has a single tap:

* a pointwise *second* layer mixes what the first gave: ``W'[o,i,k] = Σ_m W₂[o,m]·W₁[m,i,k]``, at the taps of the
  first, with both strides multiplied, since ``⌊⌊n/s₁⌋/s₂⌋ = ⌊n/(s₁·s₂)⌋``. A pointwise layer sees no padding, so b₁ is
  everywhere and ``b' = W₂·b₁ + b₂``.
* a pointwise *first* layer of stride 1 mixes what the second reads: ``W'[o,i,k] = Σ_m W₂[o,m,k]·W₁[m,i]``, at the taps
  of the second. Zeros around the data of the second are zeros around x, but b₁ is not around them: with padding
  there must be no b₁. Without, ``b' = Σ_k W₂[·,·,k]·b₁ + b₂``.

Channels may come in groups where both layers have the same, or where one of them is a depthwise one, one number a
channel: an affine map in disguise. Two kernels of several taps would make a larger one, which costs more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convbn.fuse.algebra.kernels import Form
from convbn.fuse.view.op import Window

__all__ = ["composed_bias", "composed_weight", "composition"]

Weights = NDArray[np.float64]


def composition(first: Form, second: Form) -> Form | None:
    """The form of ``second`` after ``first``, or None where it is none of those above."""
    if len(first.shape) != len(second.shape) or first.channels[0] != second.channels[1]:
        return None
    if _is_point(second):
        kernel = first.shape[2:]
        strides = tuple(a * b for a, b in zip(first.window.strides, second.window.strides, strict=True))
        window = Window(strides, first.window.dilations, first.window.begin, first.window.end)
    elif _is_point(first) and all(stride == 1 for stride in first.window.strides):
        kernel, window = second.shape[2:], second.window
    else:
        return None
    groups = second.groups if _is_scale(first) else first.groups
    if groups != second.groups and not _is_scale(second):
        return None
    return Form((second.channels[0], first.channels[1] // groups, *kernel), groups, window)


def composed_weight(first: Form, w1: Weights, second: Form, w2: Weights) -> Weights:
    """``W'`` in the shape of :func:`composition`."""
    if _is_scale(second):
        return w1 * w2.reshape(-1, *[1] * (w1.ndim - 1))
    if _is_scale(first):
        grouped = w2.reshape(second.groups, -1, *w2.shape[1:])
        factors = w1.reshape(second.groups, 1, w2.shape[1], *[1] * (w2.ndim - 2))
        return (grouped * factors).reshape(w2.shape)
    left = w2.reshape(second.groups, -1, *w2.shape[1:])
    right = w1.reshape(first.groups, -1, *w1.shape[1:])
    product: Weights
    if _is_point(second):
        product = np.einsum("gom,gmi...->goi...", left.reshape(left.shape[:3]), right)
    else:
        product = np.einsum("gom...,gmi->goi...", left, right.reshape(right.shape[:3]))
    return product.reshape(-1, *product.shape[2:])


def composed_bias(b1: Weights, second: Form, w2: Weights) -> Weights:
    """What the bias of the first layer becomes behind the second one, which has no padding."""
    taps = w2.sum(axis=tuple(range(2, w2.ndim))).reshape(second.groups, -1, w2.shape[1])
    added: Weights = np.einsum("gom,gm->go", taps, b1.reshape(second.groups, -1))
    return added.reshape(-1)


def _is_point(form: Form) -> bool:
    """Whether the kernel has one tap and lies over no padding."""
    return all(size == 1 for size in form.shape[2:]) and not form.window.padded


def _is_scale(form: Form) -> bool:
    """Whether it is one number a channel."""
    return _is_point(form) and form.channels == (form.groups, form.groups) and set(form.window.strides) <= {1}
