"""Runs and captures a user's module without side effects: global state, random states and buffers are put back.

PyTorch's tracers replace ``nn.Module.__call__`` for all threads while they run, and torch.export switches oneDNN,
cuDNN and NNPACK off. So one thread captures at a time, and what the tracers replace is replaced for that
thread alone: calls of other modules in other threads go on as ever.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from convbn.common.exclusive import quiet
from convbn.errors import BadInputError
from convbn.fuse.frontends.torch.modules.copies import duplicate

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

__all__ = ["exclusive_capture", "in_order", "isolated", "own_numerics", "random_state_kept"]


@contextmanager
def exclusive_capture() -> Iterator[None]:
    """Capture a module while no other thread does: without gradients, silently, random states put back.

    The tracers print whole graphs of a failure; what the user needs of that is in the error.
    """
    import torch
    from torch.fx import _symbolic_trace, config

    with quiet(), random_state_kept(), own_numerics(), torch.no_grad(), _compiled_parts_taken_as_written():
        original = _symbolic_trace._Patcher
        _symbolic_trace._Patcher = _patcher_for_this_thread()  # type: ignore[misc]
        # A line of the forward for every node, which takes as long as its capture; nobody reads it.
        untold, config.do_not_emit_stack_traces = config.do_not_emit_stack_traces, True
        try:
            yield
        finally:
            _symbolic_trace._Patcher = original  # type: ignore[misc]
            config.do_not_emit_stack_traces = untold


@contextmanager
def own_numerics() -> Iterator[None]:
    """Leave the inference mode and the autocast that a caller may be in, which are no part of a model.

    Gradients are on in the block.
    """
    import torch

    kinds = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    with torch.inference_mode(False), ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def _compiled_parts_taken_as_written() -> Any:
    """What torch.compile made of a part or of a method is traced through, which FX refuses otherwise."""
    dynamo: Any = sys.modules.get("torch._dynamo.config")
    return nullcontext() if dynamo is None else dynamo.patch(error_on_nested_fx_trace=False)


def _patcher_for_this_thread() -> Any:
    """FX's patcher, whose replaced methods are the original ones in every other thread."""
    from torch.fx import _symbolic_trace

    owner = threading.get_ident()

    class Patcher(_symbolic_trace._Patcher):
        def patch_method(
            self, cls: type, name: str, new_fn: Callable[..., Any], deduplicate: bool = True
        ) -> None:
            original = getattr(cls, name)

            @functools.wraps(original)
            def method(*args: Any, **kwargs: Any) -> Any:
                return (new_fn if threading.get_ident() == owner else original)(*args, **kwargs)

            super().patch_method(cls, name, method, deduplicate)

    return Patcher


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the states of Python's, NumPy's and PyTorch's random generators back, where the block has drawn."""
    import random

    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def isolated(model: torch.nn.Module | ExportedProgram) -> torch.nn.Module:
    """A module that can be run without a trace in ``model``: it has only the parameters in common with it.

    Buffers, counters and cached tensors are its own. A module that cannot be copied is given as it is.
    """
    import torch

    module = model if isinstance(model, torch.nn.Module) else in_order(model, model.module())
    memo = {id(buffer): buffer.detach().clone() for buffer in module.buffers()}
    try:
        return duplicate(module, share=True, memo=memo)
    except BadInputError:
        return module


def in_order(program: ExportedProgram, module: torch.nn.Module) -> torch.nn.Module:
    """A program's module; what it takes by keyword it takes after its positional inputs, in their order."""
    import torch

    places, keywords = program.example_inputs or ((), {})
    if not keywords:
        return module

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.program = module

        def forward(self, *inputs: Any) -> Any:
            named = zip(keywords, inputs[len(places) :], strict=True)
            return self.program(*inputs[: len(places)], **dict(named))

    return Positional()
