"""The ground floor: text, JSON, tables, number types and the garbage collector's threshold."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from convbn.common.closing import Closing
from convbn.common.dtypes import dtype_name, dtype_of, is_float
from convbn.common.encoding import JsonReady, encoded
from convbn.common.garbage import seldom_collected
from convbn.common.progress import bar
from convbn.common.text import clean, first_line, named_line, one_line, plural, printable, shape_text


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Inner(JsonReady):
    shape: tuple[int, ...]
    error: float


@dataclass(frozen=True, kw_only=True)
class Outer(JsonReady):
    version: str = field(default="1", init=False)
    inner: Inner | None
    seconds: float = field(metadata={"json": "time_seconds"})


def test_a_dataclass_is_an_object_of_its_fields_in_order() -> None:
    found = Outer(inner=Inner((1, 2), math.inf), seconds=0.5).to_dict()
    assert found == {"version": "1", "inner": {"shape": [1, 2], "error": None}, "time_seconds": 0.5}
    assert list(found) == ["version", "inner", "time_seconds"]


def test_only_json_comes_out() -> None:
    assert encoded({"a": (Colour.RED, Path("x/y"), math.nan, True, 3)}) == {
        "a": ["red", "x/y", None, True, 3]
    }
    assert type(encoded(Colour.RED)) is str


@pytest.mark.parametrize(
    ("shape", "text"),
    [((1, 3, 8), "1x3x8"), ((None, -1, 4), "?x?x4"), ((), "scalar"), (None, "unknown rank")],
)
def test_shapes(shape: tuple[int | None, ...] | None, text: str) -> None:
    assert shape_text(shape) == text


def test_an_error_in_a_line() -> None:
    assert one_line(ValueError(" a\n  b ")) == "a b"
    assert one_line(ValueError("abcdef"), 3) == "abc"
    assert one_line(ValueError()) == "ValueError"
    assert first_line(ValueError("\n  first \nsecond")) == "first"
    assert first_line(KeyError()) == "KeyError"


def test_hostile_text_is_made_visible() -> None:
    assert printable("a\u202eb\x1b\n") == "a\\u202eb\\u001b\\u000a"
    assert printable("plain ñ 漢") == "plain ñ 漢"
    assert clean("a\u202eb\n c") == "a⟨U+202E⟩b c"
    assert plural(1, "model") == "1 model"
    assert plural(1200, "model") == "1,200 models"


def test_number_types() -> None:
    assert dtype_of("bfloat16") == np.dtype(ml_dtypes.bfloat16)
    assert is_float(dtype_of("float8_e4m3fn"))
    assert not is_float(np.dtype(np.complex64))
    assert dtype_name(np.zeros(1, np.int8)) == "int8"


def test_what_is_held_is_closed_after_the_block_whatever_happens_in_it() -> None:
    class Held(Closing):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    held = Held()
    with pytest.raises(KeyError):
        fail(held)
    assert held.closed == 1


def fail(held: Closing) -> None:
    with held as same:
        assert same is held
        raise KeyError


def test_an_error_in_words_begins_with_its_class() -> None:
    assert named_line(ValueError("a\nb")) == "ValueError: a"
    assert named_line(ValueError()) == "ValueError"


def test_a_bar() -> None:
    assert bar(0.0) == "·" * 20
    assert bar(0.5) == "█" * 10 + "·" * 10


@pytest.mark.parametrize(("threshold", "inside"), [(700, 100_000), (0, 0), (200_000, 200_000)])
def test_the_collectors_threshold_comes_back(threshold: int, inside: int) -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(threshold, 11, 12)
        with seldom_collected():
            assert gc.get_threshold() == (inside, 11, 12)
        assert gc.get_threshold() == (threshold, 11, 12)
    finally:
        gc.set_threshold(*before)


def test_of_those_that_work_at_the_same_time_the_last_one_restores() -> None:
    before = gc.get_threshold()
    first, second = seldom_collected(), seldom_collected()
    try:
        gc.set_threshold(700, 11, 12)
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert gc.get_threshold() == (100_000, 11, 12)
        second.__exit__(None, None, None)
        assert gc.get_threshold() == (700, 11, 12)
    finally:
        gc.set_threshold(*before)


def test_of_blocks_that_overlap_the_last_to_end_gives_the_threshold_back() -> None:
    before = gc.get_threshold()
    try:
        gc.set_threshold(700, 11, 12)
        first, second = seldom_collected(), seldom_collected()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert gc.get_threshold() == (100_000, 11, 12)
        second.__exit__(None, None, None)
        assert gc.get_threshold() == (700, 11, 12)
    finally:
        gc.set_threshold(*before)
