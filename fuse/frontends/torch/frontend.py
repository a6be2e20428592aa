"""The kinds of PyTorch models: exported programs and modules."""

from __future__ import annotations

from typing import Any

from convbn.fuse.frontends.frontend import Capture, Frontend, Request, State

__all__ = ["FRONTENDS"]


def _program(program: Any, request: Request) -> Capture:
    from convbn.fuse.frontends.torch.capture.program import capture_program

    return capture_program(program)


def _module(module: Any, request: Request) -> Capture:
    from convbn.fuse.frontends.torch.capture.module import capture_module

    return capture_module(module, request.example_inputs, materialize=request.materialize)


def _state(model: Any) -> State:
    from convbn.fuse.frontends.torch.checkpoint.key_map import StateBefore

    return StateBefore(model)


FRONTENDS = (
    Frontend("torch.export.ExportedProgram", "torch.export", "ExportedProgram", _program, state=_state),
    Frontend("torch.nn.Module", "torch.nn", "Module", _module, state=_state),
)
