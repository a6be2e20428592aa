"""An opened ONNX model that returns any intermediate value by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from convbn.bench.models.errors import SessionError
from convbn.bench.models.inputs import Array, Feeds
from convbn.bench.proof.graph.dataflow import Dataflow, Part, name_outputs
from convbn.bench.proof.graph.execution import Runner
from convbn.bench.proof.graph.first_run import survive

if TYPE_CHECKING:
    import onnx

__all__ = ["Whole"]


class Whole:
    """A model, or the file of one, whose weights then stay where they lie.

    Args:
        model: is not changed.
        role: what errors call it.
        tried: whether it is known to end no process; otherwise another one runs it first.

    Attributes:
        flow: its dataflow.
        outputs: names, in order.
        runtime: what ran it last.
    """

    def __init__(self, model: onnx.ModelProto | str | Path, role: str, *, tried: bool = False) -> None:
        self._role, self._tried = role, tried
        self._files = ExitStack()
        self._folder: Path | None = None
        read = None
        if isinstance(model, str | Path):
            from convbn.export.onnx_io.read import open_model

            path = Path(model).absolute()
            opened = open_model(path, hashed=False)
            self._files.enter_context(opened.files)
            model, read = opened.model, opened.files.read
            self._folder = path.parent
            self._own = (opened.files.own_location, path.name)
        self.flow = Dataflow(model, read)
        self.outputs = self.flow.outputs
        self._runner: Runner | None = None
        self.runtime = ""
        self._offered: list[str] = []
        self._held: dict[str, Array] = {}
        self._of: Feeds | None = None

    def offer(self, names: Iterable[str]) -> None:
        """Say which values will be asked for beside the outputs, so that it runs once for all of them."""
        fresh = [name for name in dict.fromkeys(names) if name in self.flow.producer]
        fresh = [name for name in fresh if name not in self._offered and name not in self.outputs]
        if fresh:
            self._offered += fresh
            self._runner = None

    def values(self, feeds: Feeds, names: Iterable[str]) -> Mapping[str, Array]:
        """Values by name for one input; what was computed for the same input before is not computed again.

        Raises:
            SessionError: the model cannot be run, or a value is no tensor.
        """
        wanted = list(dict.fromkeys(names))
        if self._of is not feeds:
            self._of, self._held = feeds, dict(feeds)
        missing = [name for name in wanted if name not in self._held]
        if missing:
            self.offer(missing)
            fresh = [name for name in (*self.outputs, *self._offered) if name not in self._held]
            self._held.update(self._run(feeds, fresh))
        return self._held

    def outputs_for(self, feeds: Feeds, *, keep: bool = False) -> list[Array]:
        """The outputs for one input, in order; with ``keep``, the values on offer are kept beside them.

        Raises:
            SessionError: the model cannot be run, or an output is no tensor.
        """
        held = self.values(feeds, self.outputs) if keep else self._run(feeds, self.outputs)
        return [held[name] for name in self.outputs]

    def _run(self, feeds: Feeds, names: Sequence[str]) -> dict[str, Array]:
        if not self.outputs:
            raise SessionError("the model has no outputs, so there is nothing to compare")
        if self._runner is None:
            data = self._bytes()
            if not self._tried:
                survive(data, feeds, folder=self._folder)
                self._tried = True
            self._runner = Runner(data, self._role, folder=self._folder)
        self.runtime = self._runner.runtime
        found = self._runner.run(feeds, list(dict.fromkeys(names)))
        self.runtime = self._runner.runtime
        return found

    def release(self) -> None:
        """Give up the session; what was computed stays."""
        self._runner = None

    def part(self, part: Part) -> Runner:
        """A part of it, ready to be run."""
        if self._folder is not None:
            _refer(part.model, *self._own)
        return Runner(part.model, self._role, folder=self._folder)

    def _bytes(self, *, more: bool = True) -> bytes:
        """The model with more outputs: protobuf joins two serialized messages into one."""
        import onnx

        model = self.flow.model
        unnamed = [node for node in model.graph.node if node.output and not node.output[-1]]
        if self._folder is not None or unnamed:
            copy = type(model)()
            copy.CopyFrom(model)
            model = copy
        for node in model.graph.node if unnamed else ():
            name_outputs(node)
        if self._folder is not None:
            _refer(model, *self._own)
        data: bytes = model.SerializeToString()
        if not more or not self._offered:
            return data
        added = onnx.GraphProto(output=[onnx.ValueInfoProto(name=name) for name in self._offered])
        return data + bytes(onnx.ModelProto(graph=added).SerializeToString())

    def optimised(self, feeds: Feeds) -> Runner:
        """The same model as onnxruntime rewrites it.

        Args:
            feeds: one input.

        Raises:
            SessionError: it cannot be loaded, or ends the process.
        """
        data = self._bytes(more=False)
        survive(data, feeds, folder=self._folder, level="all")
        return Runner(data, self._role, folder=self._folder, optimised=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner, self._of, self._held = None, None, {}
        self._files.close()


def _refer(model: Any, own: str, name: str) -> None:
    """Let tensors that lie in the model's own file say its name."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value == own:
                entry.value = name
