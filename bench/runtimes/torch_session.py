"""PyTorch modules and exported programs, run eagerly on the CPU or on a CUDA GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from convbn.bench.errors import ModelFormMissingError, RuntimeMissingError, SessionError
from convbn.bench.inputs import Array, Feeds
from convbn.bench.runtimes.base import SessionOptions, Side

if TYPE_CHECKING:
    import torch

__all__ = ["open_session"]


def open_session(side: Side, options: SessionOptions, device: str, level: str | None) -> TorchSession:
    """Take the PyTorch form of a side.

    Args:
        side: the model; its ``module`` is used, on a copy if it does not lie on the device.
        options: how to run it.
        device: ``cpu`` or ``cuda``.
        level: always None, PyTorch run eagerly has no levels.

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
    try:
        import torch
    except ImportError as error:
        raise RuntimeMissingError("torch is not installed", hint="pip install 'convbn[torch]'") from error
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeMissingError(
            f"torch {torch.__version__} sees no CUDA GPU",
            hint="install a CUDA build of torch on a machine with an NVIDIA GPU",
        )
    given = side.module
    module = given.module() if isinstance(given, torch.export.ExportedProgram) else given
    return TorchSession(_placed(module, torch.device(device)), side.name, device, options.threads)


class TorchSession:
    """A module in evaluation mode under ``torch.inference_mode``.

    The ``training`` flags are set for as long as the session is open and then put back one by one:
    ``module.eval()`` would also run the side effects of an overridden ``train``.
    """

    def __init__(self, module: torch.nn.Module, name: str, device: str, threads: int | None) -> None:
        import torch

        self._module = module
        self._name = name
        self._device = device
        self._flags = [(part, part.training) for part in module.modules()]
        self._threads: int | None = None
        self.output_names: tuple[str, ...] = ()
        # cuDNN may convolve in TF32 unless told otherwise: a 10-bit mantissa, as float16 has.
        self.compute_dtype: str | None = "float16" if device == "cuda" else None
        for part, _ in self._flags:
            part.training = False
        if threads is not None:
            self._threads = torch.get_num_threads()
            torch.set_num_threads(threads)

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference (see :class:`convbn.bench.runtimes.base.Session`)."""
        import torch
        from torch.utils import _pytree as pytree

        inputs = self._tensors(feeds)
        try:
            with torch.inference_mode():
                result = self._module(*inputs)
        except Exception as error:  # a user's module may raise anything
            raise self._typed(error) from error
        named = [(pytree.keystr(path), leaf) for path, leaf in pytree.tree_flatten_with_path(result)[0]]
        kept = [(key, leaf) for key, leaf in named if leaf is not None]
        self.output_names = tuple(f"output{key}" for key, _ in kept)
        return [_array(leaf) for _, leaf in kept]

    def prepare(self, feeds: Feeds) -> Callable[[], None]:
        """Move the inputs to the device; on CUDA each call waits until the device has finished."""
        import torch

        module = self._module
        inputs = self._tensors(feeds)
        synchronize = torch.cuda.synchronize

        def on_cpu() -> None:
            with torch.inference_mode():
                module(*inputs)

        def on_cuda() -> None:
            with torch.inference_mode():
                module(*inputs)
            synchronize()

        call = on_cuda if self._device == "cuda" else on_cpu
        try:
            call()
        except Exception as error:  # a user's module may raise anything
            raise self._typed(error) from error
        return call

    def close(self) -> None:
        """Put the training flags and the number of threads back."""
        import torch

        for part, flag in self._flags:
            part.training = flag
        self._flags = []
        if self._threads is not None:
            torch.set_num_threads(self._threads)
            self._threads = None

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


def _placed(module: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    tensors = [*module.parameters(), *module.buffers()]
    if all(tensor.device.type == device.type for tensor in tensors):
        return module
    return copy.deepcopy(module).to(device)


def _tensor(array: Array) -> torch.Tensor:
    import torch

    array = np.require(array, requirements=["C", "W"])
    if array.dtype.isbuiltin == 1:
        return torch.from_numpy(array)
    # bfloat16 and the 8-bit floats are no numpy types: the bytes travel as integers.
    carrier = {1: np.uint8, 2: np.int16}[array.dtype.itemsize]
    dtype: torch.dtype = getattr(torch, array.dtype.name)
    return torch.from_numpy(array.view(carrier)).view(dtype)


def _array(leaf: Any) -> Array:
    import torch

    from convbn.bench.inputs import dtype_of

    if not isinstance(leaf, torch.Tensor):
        return np.asarray(leaf)
    tensor = leaf.detach().cpu().contiguous()
    dtype = dtype_of(str(tensor.dtype).removeprefix("torch."))
    if dtype.isbuiltin == 1:
        return tensor.numpy()
    carrier = {1: torch.uint8, 2: torch.int16}[dtype.itemsize]
    return tensor.view(carrier).numpy().view(dtype)
