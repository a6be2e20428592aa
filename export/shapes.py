"""Input shapes as a user types them.

``x:1x3x224x224`` is one shape, ``x:1x3x224x224:8x3x224x224:32x3x224x224`` the smallest, the usual and the
largest one; ``x=`` is read like ``x:``. Dimensions are separated by ``x`` or ``,``; the name may be left out where
a model has one input. ``;`` separates several of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from convbn.common.text import shape_text
from convbn.errors import UsageError

__all__ = [
    "Profile",
    "Shape",
    "ShapeRange",
    "parse_profiles",
    "parse_shape",
    "parse_shape_range",
    "usual_shapes",
]

Shape = tuple[int, ...]

_SHAPE = re.compile(r"\d+(?:x\d+)*|\d+(?:,\d+)*", re.ASCII)
# No name of an input, where a shape follows: "0" of "input:0:1x3" is.
_RANK_2 = re.compile(r"\d+(?:[x,]\d+)+", re.ASCII)
# TensorRT and onnxruntime keep a dimension in 32 bits or fewer.
_MAX_DIM = (1 << 31) - 1


@dataclass(frozen=True)
class ShapeRange:
    """The shapes that one input may have.

    Attributes:
        min: the smallest, dimension by dimension.
        opt: the one to optimise for, `min` <= `opt` <= `max`.
        max: the largest.
    """

    min: Shape
    opt: Shape
    max: Shape

    def __post_init__(self) -> None:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise UsageError(f"shapes {self} differ in rank")
        if any(
            not low <= usual <= high for low, usual, high in zip(self.min, self.opt, self.max, strict=True)
        ):
            raise UsageError(f"shapes {self} are not in the order smallest:usual:largest")

    def __str__(self) -> str:
        shapes = (self.min,) if self.min == self.max else (self.min, self.opt, self.max)
        return ":".join(shape_text(shape) for shape in shapes)


# The range of each dynamic input, by name; None names the only input.
Profile: TypeAlias = Mapping[str | None, ShapeRange]


def parse_shape(text: str) -> tuple[str | None, Shape]:
    """Parse one shape, or the usual one of a range, with or without a name; see :func:`parse_shape_range`."""
    name, shapes = parse_shape_range(text)
    return name, shapes.opt


def parse_shape_range(text: str) -> tuple[str | None, ShapeRange]:
    """Parse a range of shapes with or without a name.

    Args:
        text: ``NAME=MIN:OPT:MAX``, ``NAME:MIN:OPT:MAX``, ``MIN:OPT:MAX``, or one shape in the place of three. The
            name ends at the last ``=``; without one, where the shapes begin, so that names like ``input:0``
            are possible.

    Returns:
        The input's name, if one is given, and its range; a single shape is all three of it.

    Raises:
        UsageError: the text is nothing of the kind, a dimension is 0 or absurdly large, or the three differ in
            rank or are out of order.
    """
    head, equals, rest = text.rpartition("=")
    name, parts = head if equals else None, rest.split(":")
    if name is None:
        three = len(parts) >= 3 and all(map(_SHAPE.fullmatch, parts[-3:]))
        count = 3 if three else 1
        name = ":".join(parts[:-count]) if len(parts) > count else None
        if not three and name is not None and _RANK_2.fullmatch(parts[-2]):
            count = 2
        parts = parts[-count:]
    if len(parts) not in (1, 3):
        raise UsageError(f"{text!r} has {len(parts)} shapes", hint="write NAME=MIN:OPT:MAX")
    shapes = [_dims(part, text) for part in parts]
    return _name(text, name), ShapeRange(shapes[0], shapes[len(shapes) // 2], shapes[-1])


def parse_profiles(texts: Iterable[str]) -> tuple[Profile, ...]:
    """Parse the ranges of several optimisation profiles.

    Args:
        texts: options, each one range or several separated by ``;``. The first range of an input belongs
            to the first profile, its second to the second. An input with a single range has it in all.

    Returns:
        The profiles; none for no text.

    Raises:
        UsageError: see :func:`parse_shape_range`, or the inputs have different numbers of ranges, or two
            profiles are the same, or a range without a name is not alone.
    """
    ranges: dict[str | None, list[ShapeRange]] = {}
    for text in texts:
        for part in text.split(";"):
            name, shapes = parse_shape_range(part)
            ranges.setdefault(name, []).append(shapes)
    if None in ranges and len(ranges) > 1:
        raise UsageError("one of several shapes has no name", hint="write NAME=SHAPE for each")
    count = max(map(len, ranges.values()), default=0)
    for name, found in ranges.items():
        if len(found) not in (1, count):
            raise UsageError(
                f"input {name!r} has {len(found)} shapes where another has {count}",
                hint="give each input one range for all profiles, or one for each",
            )
    profiles = tuple(
        {name: found[min(index, len(found) - 1)] for name, found in ranges.items()} for index in range(count)
    )
    if any(profile in profiles[:index] for index, profile in enumerate(profiles)):
        raise UsageError("two optimisation profiles are the same", hint="leave one of them out")
    return profiles


def usual_shapes(texts: Iterable[str]) -> tuple[str, ...]:
    """The shape to optimise for of each input in the first profile, as one writes it for ``--input-shape``."""
    first = next(iter(parse_profiles(texts)), {})
    return tuple(
        shape_text(shapes.opt) if name is None else f"{name}={shape_text(shapes.opt)}"
        for name, shapes in first.items()
    )


def _dims(text: str, whole: str) -> Shape:
    if not _SHAPE.fullmatch(text):
        raise UsageError(f"{whole!r} is not a shape", hint="write it like x:1x3x224x224")
    dims = tuple(int(dim) for dim in re.split("[x,]", text))
    if not all(0 < dim <= _MAX_DIM for dim in dims):
        raise UsageError(f"{whole!r} has a dimension that is 0 or beyond {_MAX_DIM}")
    return dims


def _name(whole: str, name: str | None) -> str | None:
    if name is not None and not name.strip():
        raise UsageError(f"{whole!r} names no input before its shape")
    return name
