"""A function from one exported program to another, to be chained with passes of that form.

>>> program = torch.export.export(module, example_inputs)
>>> for change in (fold_batchnorm, another_pass):
...     program = change(program)

There is no backend for ``torch.compile``: Dynamo hands a backend graphs cut at every break of the Python code, whose
parameters are inputs that may still change. A folded copy of them would be wrong after the next ``load_state_dict``,
silently. Fold first, then compile: ``torch.compile(convbn.fuse(module).model)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import convbn

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["fold_batchnorm"]


def fold_batchnorm(program: ExportedProgram, options: convbn.FuseOptions | None = None) -> ExportedProgram:
    """Fold every BatchNorm of an exported program that can be folded exactly.

    Args:
        program: what ``torch.export.export`` gives, of a module in eval mode; it is left as it was.
        options: rules to use, and whether to verify.

    Raises:
        CheckFailedError: the outputs are not equal.
    """
    return convbn.fuse(program, options=options).model
