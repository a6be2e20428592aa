"""PyTorch modules and exported programs on the CPU or on a CUDA GPU: eager, compiled, or as a CUDA graph.

On a GPU float32 is computed in float32. The level ``tf32`` allows TF32, a 10-bit mantissa, in convolutions and
matrix products while a model is timed; its outputs are compared with TF32 off all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from convbn.bench.models.errors import ModelFormMissingError, RuntimeMissingError, SessionError
from convbn.bench.runtimes.base import Levels, Prepared, Runtime, Session, SessionOptions, Variant
from convbn.common.dtypes import dtype_of
from convbn.common.exclusive import exclusive
from convbn.common.text import one_line
from convbn.fuse.frontends.torch.modules.copies import duplicate
from convbn.fuse.frontends.torch.modules.isolation import isolated, own_numerics, random_state_kept
from convbn.fuse.frontends.torch.modules.keywords import called

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from convbn.bench.models.inputs import Array, Feeds

__all__ = ["RUNTIMES", "TorchSession"]

#: Modules of one class share their bytecode, and so the count of recompilations after which torch.compile
#: would go on in eager mode without a word.
_RECOMPILATIONS = 64
_MODES = ("reduce-overhead", "max-autotune")


def load(device: str, variant: str) -> None:
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
        text = one_line(error, 200)
        raise RuntimeMissingError(
            f"torch.compile does not work here ({text})",
            hint="on the CPU it needs a C++ compiler: install g++",
        ) from error


def open_session(
    device: str, variant: str, model: Variant, options: SessionOptions, levels: Levels
) -> TorchSession:
    """Take the PyTorch form of a variant.

    Args:
        device: ``cpu`` or ``cuda``.
        variant: ``eager``, ``compile`` or ``cudagraph``.
        model: the model; its ``module`` is used, on a copy if it does not lie on the device as it should.
        options: how to run it.
        levels: see :data:`RUNTIMES`.

    Returns:
        The session.

    Raises:
        ModelFormMissingError: the variant has no PyTorch form.
        RuntimeMissingError: torch is missing, or sees no CUDA GPU.
    """
    if model.module is None:
        raise ModelFormMissingError(
            "torch needs a PyTorch module", source=model.name, hint="give a checkpoint with --arch"
        )
    torch = _torch(device)
    return TorchSession(
        _placed(model.module, torch.device(device), levels), model.name, device, variant, options, levels
    )


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


def _versions() -> Mapping[str, str]:
    """CUDA and cuDNN as this torch brings them; nothing in a CPU build."""
    import torch

    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]  # torch annotates it only in part
    found = {"CUDA of torch": torch.version.cuda, "cuDNN of torch": cudnn}
    return {name: str(version) for name, version in found.items() if version is not None}


def _runtime(
    name: str,
    device: Literal["cpu", "cuda"],
    variant: str,
    runs: str,
    *further: Levels,
    folds: str | None = None,
) -> Runtime:
    on_gpu: tuple[Levels, ...] = (("tf32",), ("cudnn-benchmark",)) if device == "cuda" else ()
    return Runtime(
        name,
        device,
        "torch",
        runs,
        load=partial(load, device, variant),
        open=partial(open_session, device, variant),
        levels=(("channels_last",), *on_gpu, *further),
        folds=folds,
        packages=("torch",),
        versions=_versions,
    )


_EAGER, _COMPILED = "the module, eagerly", "`torch.compile`; where it would go on eagerly it is an error"
_COMPILES = "torch.compile fuses a BatchNorm with the operators around it into one kernel"

RUNTIMES = (
    _runtime("torch-cpu", "cpu", "eager", _EAGER),
    _runtime("torch-compile-cpu", "cpu", "compile", _COMPILED, _MODES, ("freezing",), folds=_COMPILES),
    _runtime("torch-cuda", "cuda", "eager", _EAGER),
    _runtime("torch-compile-cuda", "cuda", "compile", _COMPILED, _MODES, ("freezing",), folds=_COMPILES),
    _runtime(
        "torch-cudagraph", "cuda", "cudagraph", "the module, captured once as a CUDA graph and replayed"
    ),
)


class TorchSession(Session):
    """A module in evaluation mode under ``torch.inference_mode``.

    The ``training`` flags are set for as long as the session is open and then put back one by one:
    ``module.eval()`` would also run the side effects of an overridden ``train``.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        name: str,
        device: str,
        variant: str,
        options: SessionOptions,
        levels: Levels = (),
    ) -> None:
        import torch

        self._module = module
        self._name = name
        self._device = device
        self._variant = variant
        self._levels = levels
        self._l2 = options.l2
        self._flags = [(part, part.training) for part in module.modules()]
        self._threads: int | None = None
        self._settings = ExitStack()
        self.output_names: tuple[str, ...] = ()
        self.compute_dtype: str | None = None
        for part, _ in self._flags:
            part.training = False
        if options.threads is not None:
            self._threads = torch.get_num_threads()
            torch.set_num_threads(options.threads)
        self._forward: Callable[..., Any] = module
        if device == "cuda":
            self._settings.enter_context(_cuda_settings("tf32" in levels, "cudnn-benchmark" in levels))
        if variant == "compile":
            self._forward = _compiled(module, levels, self._settings)

    def run(self, feeds: Feeds) -> list[Array]:
        """One inference (see :class:`convbn.bench.runtimes.base.Session`)."""
        import torch

        from convbn.bench.models.outputs import named_outputs

        inputs = self._arguments(feeds)
        try:
            exact = nullcontext() if self._device == "cpu" else _cuda_settings(tf32=False, benchmark=False)
            # While another thread captures, PyTorch's switches are not those that a comparison needs.
            watched = nullcontext() if self._variant == "compile" else self._autocast_watched()
            with exclusive(), random_state_kept(), own_numerics(), torch.inference_mode(), exact, watched:
                result = called(self._forward, inputs)
        except Exception as error:  # a user's module may raise anything
            raise self._typed(error) from error
        named = list(named_outputs(result))
        self.output_names = tuple(name for name, _ in named)
        return [array for _, array in named]

    def _autocast_watched(self) -> AbstractContextManager[Any]:
        """Note in what type calls under ``torch.autocast`` compute."""
        import torch
        from torch.overrides import TorchFunctionMode

        session, kind = self, self._device.partition(":")[0]

        class Watch(TorchFunctionMode):
            def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
                if torch.is_autocast_enabled(kind):
                    session.compute_dtype = str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
                return func(*args, **(kwargs or {}))

        return Watch()

    def prepare(self, feeds: Feeds) -> Prepared:
        """Move the inputs to the device; on CUDA times are those between two of its events."""
        import torch

        forward = self._forward
        inputs = self._arguments(feeds)

        def launch() -> object:
            with torch.inference_mode():
                return called(forward, inputs)

        try:
            launch()
            if self._device == "cpu":
                return Prepared(launch)
            from convbn.bench.runtimes.torch_cuda import on_cuda

            tf32 = "tf32" in self._levels
            return on_cuda(launch, graph=self._variant == "cudagraph", l2=self._l2, tf32=tf32)
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

    def _arguments(self, feeds: Feeds) -> tuple[Any, ...]:
        import torch

        from convbn.bench.models.arguments import Arguments

        tensors = {name: _tensor(array).to(self._device, copy=True) for name, array in feeds.items()}
        if "channels_last" in self._levels:
            last = torch.channels_last
            tensors = {
                name: t.contiguous(memory_format=last) if t.ndim == 4 else t for name, t in tensors.items()
            }
        return feeds.filled(tensors) if isinstance(feeds, Arguments) else tuple(tensors.values())

    def _typed(self, error: Exception) -> SessionError:
        text = one_line(error, 300)
        return SessionError(f"torch cannot run the model ({type(error).__name__}: {text})", source=self._name)


@contextmanager
def _cuda_settings(tf32: bool, benchmark: bool) -> Iterator[None]:
    """Whether float32 may be rounded to TF32, and cuDNN tries its algorithms; put back on leaving."""
    import torch

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = tf32, tf32, benchmark
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before


def _compiled(module: torch.nn.Module, levels: Levels, settings: ExitStack) -> Callable[..., Any]:
    """The compiled module; that it stays compiled is set for as long as ``settings`` is open."""
    import torch
    from torch import _dynamo, _inductor

    settings.callback(_dynamo.reset)
    settings.enter_context(
        _dynamo.config.patch(
            recompile_limit=_RECOMPILATIONS, fail_on_recompile_limit_hit=True, suppress_errors=False
        )
    )
    settings.enter_context(_inductor.config.patch(freezing="freezing" in levels))
    mode = next((level for level in levels if level in _MODES), None)
    forward: Callable[..., Any] = torch.compile(module, dynamic=False, mode=mode)
    return forward


def _placed(
    model: torch.nn.Module | ExportedProgram, device: torch.device, levels: Levels
) -> torch.nn.Module:
    """A copy on the device, in the layout that a level asks for, which a run may change.

    Where it lies there as it should already, it shares its parameters.
    """
    import torch

    module = isolated(model)
    tensors = [*module.parameters(), *module.buffers()]
    if "channels_last" in levels:
        moved: Any = duplicate(module, share=False)
        laid_out: torch.nn.Module = moved.to(device=device, memory_format=torch.channels_last)
        return laid_out
    if all(tensor.device.type == device.type for tensor in tensors):
        return module
    return duplicate(module, share=False).to(device)


def _tensor(array: Array) -> torch.Tensor:
    import numpy as np
    import torch

    # The type of an array that was pickled does not count as built in before it is looked up again.
    array = np.require(array, requirements=["C", "W"]).view(dtype_of(array.dtype.name))
    if array.dtype.isbuiltin == 1:
        return torch.from_numpy(array)
    # bfloat16 and the 8-bit floats are no numpy types: the bytes travel as integers.
    carrier = {1: np.uint8, 2: np.int16}[array.dtype.itemsize]
    dtype: torch.dtype = getattr(torch, array.dtype.name)
    return torch.from_numpy(array.view(carrier)).view(dtype)
