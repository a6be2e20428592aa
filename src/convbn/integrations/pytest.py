"""A check for the tests of a deployment: no BatchNorm may be left in what is shipped.

>>> def test_what_we_ship() -> None:
...     assert_folded("build/model.onnx")
"""

from __future__ import annotations

from typing import Any

import convbn

__all__ = ["assert_folded"]


def assert_folded(model: Any, left: int = 0) -> None:
    """Fail unless at most ``left`` BatchNorms are in the model, saying which are and what convbn would do with them.

    Args:
        model: an ONNX model or path, a module, or an exported program.
        left: how many BatchNorms may stay.

    Raises:
        AssertionError: more are left.
    """
    __tracebackhide__ = True
    report = convbn.inspect(model)
    found = report.batchnorm.before
    if found <= left:
        return
    could = found - report.batchnorm.after
    lines = [f"{found} BatchNorms are left, at most {left} may be; convbn.fuse would fold {could} of them"]
    lines += [f"  {kept.name} stays: {kept.detail} ({kept.reason})" for kept in report.kept]
    raise AssertionError("\n".join(lines))
