"""Activations written out in simple operators, as exporters write them."""

from __future__ import annotations

from support.graphs import Writer


def bell(w: Writer, x: str) -> str:
    return w("Add", w("Erf", w("Div", x, 2**0.5)), 1.0)


def gelu(w: Writer, x: str) -> str:
    return w("Mul", w("Mul", x, bell(w, x)), 0.5)


def gelu_tanh(w: Writer, x: str) -> str:
    inner = w("Mul", w("Add", x, w("Mul", w("Pow", x, 3.0), 0.044715)), 0.7978845608)
    return w("Mul", w("Mul", x, 0.5), w("Add", w("Tanh", inner), 1.0))


def quick_gelu(w: Writer, x: str) -> str:
    return w("Mul", x, w("Sigmoid", w("Mul", x, 1.702)))


def silu(w: Writer, x: str) -> str:
    return w("Mul", x, w("Sigmoid", x))


def mish(w: Writer, x: str) -> str:
    return w("Mul", x, w("Tanh", w("Softplus", x)))


def hard_swish(w: Writer, x: str) -> str:
    return w("Div", w("Mul", x, w("Clip", w("Add", x, 3.0), 0.0, 6.0)), 6.0)
