from __future__ import annotations

import pytest

from convbn.errors import UsageError
from convbn.export.shapes import ShapeRange, parse_profiles, parse_shape, parse_shape_range

DIMS = (1, 3, 224, 224)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("x:1x3x224x224", "x"),
        ("x:1,3,224,224", "x"),
        ("x=1x3x224x224", "x"),
        ("1x3x224x224", None),
        ("1,3,224,224", None),
        ("input:0:1x3x224x224", "input:0"),
        ("模型/x 1:1x3x224x224", "模型/x 1"),
    ],
)
def test_one_shape(text, name):
    assert parse_shape(text) == (name, DIMS)
    assert parse_shape_range(text) == (name, ShapeRange(DIMS, DIMS, DIMS))


@pytest.mark.parametrize(
    "text",
    ["x=1x3:8x3:32x3", "x:1x3:8x3:32x3", "1x3:8x3:32x3", "input:0=1,3:8,3:32,3", "input:0:1x3:8x3:32x3"],
)
def test_range(text):
    name, shapes = parse_shape_range(text)
    assert (shapes.min, shapes.opt, shapes.max) == ((1, 3), (8, 3), (32, 3))
    assert name == {"x": "x", "1": None, "i": "input:0"}[text[0]]
    assert str(shapes) == "1x3:8x3:32x3"
    assert parse_shape(text) == (name, (8, 3))


@pytest.mark.parametrize(
    "text",
    ["", "x", "x:", ":1x3", "=1x3", "x:1x3,4", "x:1xx3", "x:-1x3", "x:0x3", "x:1.5x3", "x:axb", "x:1x3 ",
     "x:1x3\n", "x:99999999999x1", "x:１x3", "x:1x3x"],
)  # fmt: skip
def test_nonsense(text):
    for parse in (parse_shape, parse_shape_range):
        with pytest.raises(UsageError) as error:
            parse(text)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x=1x3:8x3", "has 2 shapes"),
        ("x:1x3:8x3", "has 2 shapes"),
        ("x=1x3:8x3:9x3:9x3", "has 4 shapes"),
        ("x=8x3:1x3:32x3", "not in the order"),
        ("x=1x3:8x3:4x3", "not in the order"),
        ("x=1x3:8x3x1:32x3", "differ in rank"),
        ("=1x3:8x3:32x3", "names no input"),
    ],
)
def test_bad_ranges(text, told):
    with pytest.raises(UsageError, match=told):
        parse_shape_range(text)


def test_several():
    (profile,) = parse_profiles(["x:1x3", "y=1x3:2x3:3x3"])
    assert set(profile) == {"x", "y"}
    assert parse_profiles([]) == ()
    with pytest.raises(UsageError, match="has no name"):
        parse_profiles(["x:1x3", "1x4"])


@pytest.mark.parametrize(
    "texts",
    [["x=1x3:2x3:4x3;x=8x3", "y:1x5"], ["x=1x3:2x3:4x3", "y:1x5", "x:8x3"], ["y:1x5;x=1x3:2x3:4x3;x:8x3"]],
)
def test_profiles_are_counted_by_input(texts):
    first, second = parse_profiles(texts)
    assert first["x"] == ShapeRange((1, 3), (2, 3), (4, 3))
    assert second["x"] == ShapeRange((8, 3), (8, 3), (8, 3))
    assert first["y"] == second["y"] == ShapeRange((1, 5), (1, 5), (1, 5))


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["x:1x3;x:2x3;x:4x3", "y:1x5;y:2x5"], "input 'y' has 2 shapes where another has 3"),
        (["x:1x3;x:1x3"], "two optimisation profiles are the same"),
        (["x:1x3;1x4"], "one of several shapes has no name"),
        (["x:1x3;"], "'' is not a shape"),
    ],
)
def test_profiles_that_make_no_sense(texts, told):
    with pytest.raises(UsageError, match=told):
        parse_profiles(texts)


def test_no_profile():
    assert parse_profiles([]) == ()
    assert len(parse_profiles(["1x3:2x3:4x3;8x3"])) == 2
