"""PyTorch modules and exported programs on the CPU or on a CUDA GPU: eager, compiled, or as a CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from convbn.bench.models.errors import ModelFormMissingError, RuntimeMissingError, SessionError
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.runtimes.base import Prepared, SessionOptions, Side
from convbn.common.dtypes import dtype_name, dtype_of

if TYPE_CHECKING:
    import torch

__all__ = ["load_library", "open_session"]

#: Modules of one class share their bytecode, and so the count of recompilations after which torch.compile
#: would go on in eager mode without a word.
_RECOMPILATIONS = 64


def load_library(device: str, variant: str) -> None:
    """Import torch and, for compiled models, get its compiler ready.

    Raises:
        RuntimeMissingError: torch is missing, sees no CUDA GPU, or has no working compiler.
    """
    torch = _torch(device)
    if variant != "compile":
        return
    try:
        torch.compile(torch.nn.ReLU())(torch.zeros(4, device=device))
    except Exception as error:  # a missing C++ compiler shows as whatever the compiler's caller raises
        text = " ".join(str(error).split())[:200]
        raise RuntimeMissingError(
            f"torch.compile does not work here ({text})",
            hint="on the CPU it needs a C++ compiler: install g++",
        ) from error


def open_session(
    side: Side, options: SessionOptions, device: str, variant: str, level: str | None
) -> TorchSession:
    """Take the PyTorch form of a side.

    Args:
        side: the model; its ``module`` is used, on a copy if it does not lie on the device.
        options: how to run it.
        device: ``cpu`` or ``cuda``.
        variant: ``eager``, ``compile`` or ``cudagraph``.
        level: always None, PyTorch has no levels.

    Returns:
        The session.

    Raises:
        ModelFormMissingError: the side has no PyTorch form.
        RuntimeMissingError: torch is missing, or sees no CUDA GPU.
    """
    if side.module is None:
        raise ModelFormMissingError(
            "torch needs a PyTorch module", source=side.name, hint="give a checkpoint with --arch"
        )
    torch = _torch(device)
    given: Any = side.module
    module = given.module() if isinstance(given, torch.export.ExportedProgram) else given
    return TorchSession(_placed(module, torch.device(device)), side.name, device, variant, options)


def _torch(device: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise RuntimeMissingError("torch is not installed", hint="pip install 'convbn[torch]'") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeMissingError(
            f"torch {torch.__version__} sees no CUDA GPU",
            hint="install a CUDA build of torch on a machine with an NVIDIA GPU",
        )
    return torch


class TorchSession:
    """A module in evaluation mode under ``torch.inference_mode``.

    The ``training`` flags are set for as long as the session is open and then put back one by one:
    ``module.eval()`` would also run the side effects of an overridden ``train``.
    """

    def __init__(
        self, module: torch.nn.Module, name: str, device: str, variant: str, options: SessionOptions
    ) -> None:
        import torch

        self._module = module
        self._name = name
        self._device = device
        self._variant = variant
        self._l2 = options.l2
        self._flags = [(part, part.training) for part in module.modules()]
        self._threads: int | None = None
        self._settings = ExitStack()
        self.output_names: tuple[str, ...] = ()
        # cuDNN may convolve in TF32 unless told otherwise: a 10-bit mantissa, as float16 has.
        self.compute_dtype: str | None = "float16" if device == "cuda" else None
        for part, _ in self._flags:
            part.training = False
        if options.threads is not None:
            self._threads = torch.get_num_threads()
            torch.set_num_threads(options.threads)
        self._forward: Callable[..., Any] = module
        if variant == "compile":
            self._forward = _compiled(module, self._settings)

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference (see :class:`convbn.bench.runtimes.base.Session`)."""
        import torch
        from torch.utils import _pytree as pytree

        inputs = self._tensors(feeds)
        try:
            with torch.inference_mode():
                result = self._forward(*inputs)
        except Exception as error:  # a user's module may raise anything
            raise self._typed(error) from error
        named = [(pytree.keystr(path), leaf) for path, leaf in pytree.tree_flatten_with_path(result)[0]]
        kept = [(key, leaf) for key, leaf in named if leaf is not None]
        self.output_names = tuple(f"output{key}" for key, _ in kept)
        return [_array(leaf) for _, leaf in kept]

    def prepare(self, feeds: Feeds) -> Prepared:
        """Move the inputs to the device; on CUDA times are those between two of its events."""
        import torch

        forward = self._forward
        inputs = self._tensors(feeds)

        def launch() -> None:
            with torch.inference_mode():
                forward(*inputs)

        try:
            launch()
            if self._device == "cpu":
                return Prepared(launch)
            from convbn.bench.runtimes.torch_cuda import on_cuda

            return on_cuda(launch, graph=self._variant == "cudagraph", l2=self._l2)
        except Exception as error:  # a user's module may raise anything
            raise self._typed(error) from error

    def close(self) -> None:
        """Put the training flags and the number of threads back."""
        import torch

        for part, flag in self._flags:
            part.training = flag
        self._flags = []
        if self._threads is not None:
            torch.set_num_threads(self._threads)
            self._threads = None
        self._forward = self._module
        self._settings.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tensors(self, feeds: Feeds) -> list[torch.Tensor]:
        return [_tensor(array).to(self._device) for array in feeds.values()]

    def _typed(self, error: Exception) -> SessionError:
        text = " ".join(str(error).split())[:300]
        return SessionError(f"torch cannot run the model ({type(error).__name__}: {text})", source=self._name)


def _compiled(module: torch.nn.Module, settings: ExitStack) -> Callable[..., Any]:
    """The compiled module; that it stays compiled is set for as long as ``settings`` is open."""
    import torch
    from torch import _dynamo

    settings.callback(_dynamo.reset)
    settings.enter_context(
        _dynamo.config.patch(
            recompile_limit=_RECOMPILATIONS, fail_on_recompile_limit_hit=True, suppress_errors=False
        )
    )
    forward: Callable[..., Any] = torch.compile(module, dynamic=False)
    return forward


def _placed(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    tensors = [*module.parameters(), *module.buffers()]
    if all(tensor.device.type == device.type for tensor in tensors):
        return module
    return copy.deepcopy(module).to(device)


def _tensor(array: Array) -> torch.Tensor:
    import torch

    # The type of an array that was pickled does not count as built in before it is looked up again.
    array = np.require(array, requirements=["C", "W"]).view(dtype_of(array.dtype.name))
    if array.dtype.isbuiltin == 1:
        return torch.from_numpy(array)
    # bfloat16 and the 8-bit floats are no numpy types: the bytes travel as integers.
    carrier = {1: np.uint8, 2: np.int16}[array.dtype.itemsize]
    dtype: torch.dtype = getattr(torch, array.dtype.name)
    return torch.from_numpy(array.view(carrier)).view(dtype)


def _array(leaf: Any) -> Array:
    import torch

    if not isinstance(leaf, torch.Tensor):
        return np.asarray(leaf)
    tensor = leaf.detach().cpu().contiguous()
    dtype = dtype_of(dtype_name(tensor))
    if dtype.isbuiltin == 1:
        return tensor.numpy()
    carrier = {1: torch.uint8, 2: torch.int16}[dtype.itemsize]
    return tensor.view(carrier).numpy().view(dtype)
