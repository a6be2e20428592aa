"""The same steps as tasks of a Ray cluster: with resources, tried again when a process dies, cancelled with the run.

Every node must have convbn installed and see the store, the models and the output folder under the same paths, or reach
them at the same URLs.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from convbn.common.text import named_line
from convbn.errors import FileAccessError, NotSupportedError
from convbn.pipeline.outcome import Outcome
from convbn.pipeline.perform import perform
from convbn.pipeline.remote_store import opened
from convbn.pipeline.runners.pool import Runner
from convbn.pipeline.step import Step

__all__ = ["RayRunner"]

_DIED = 70
_AGAIN = 0.2
"""Seconds after which a node is asked for again that another run has."""

_QUEUED = 2
"""Tasks for each processor of the cluster that are given to it before some are done: more would burden its head."""

_MEMORY_SHARE = 0.9


class RayRunner(Runner):
    """A Ray cluster.

    Args:
        address: as :func:`ray.init` takes it; ``auto`` is the cluster of this machine, ``local`` starts one.
        workers: processors of a local cluster.
        retries: how often Ray tries a step again whose process or node died.
        store: folder of results, which every node sees under this path.

    Raises:
        NotSupportedError: Ray is not installed.
        FileAccessError: there is no cluster at that address.
    """

    def __init__(self, address: str, workers: int | None, *, retries: int, store: str) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise NotSupportedError("ray is not installed", hint="pip install 'convbn[ray]'") from error
        self._ray = ray
        self._store = store
        facts: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if address == "local":
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            facts |= {"num_cpus": workers or len(os.sched_getaffinity(0)), "include_dashboard": False}
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, **facts)
        except Exception as error:  # it raises what it likes, down to Exception itself
            hint = "ray status says what runs; --ray local starts a cluster here"
            raise FileAccessError(
                f"no Ray cluster answers: {named_line(error)}", source=f"--ray {address}", hint=hint
            ) from error
        if main:
            signal.signal(signal.SIGTERM, before)  # Ray puts its own in, which ends with another code
        self._task = ray.remote(max_retries=retries)(_do)
        self._running: dict[Any, Step] = {}
        self._benches: Counter[str] = Counter()
        self._nodes = [node for node in ray.nodes() if node["Alive"]]
        self._refused: list[tuple[Step, Outcome]] = []
        self._limit = _QUEUED * int(sum(node["Resources"].get("CPU", 0) for node in self._nodes)) + 2

    def has_room(self, step: Step) -> bool:
        """As long as not too many wait for a processor; which of them runs when is Ray's affair."""
        return len(self._running) < self._limit

    def submit(self, step: Step) -> None:
        """Hand a step over with the resources that it needs."""
        place = step.place
        nodes = [node for node in self._nodes if _has(node["Resources"], step)]
        if not nodes:
            wanted = ", ".join(f"{name} {amount:g}" for name, amount in _needs(step).items() if name != "CPU")
            cause = f"no node of the cluster has {wanted}; add one, or take it out of the plan"
            self._refused.append(
                (step, Outcome(step.name, step.kind, step.model, "failed", error=cause, exit_code=4))
            )
            return
        largest = max(node["Resources"].get("memory", 0) for node in nodes)
        facts: dict[str, Any] = {
            "name": step.name,
            "num_cpus": 1,
            "num_gpus": place.gpus,
            "accelerator_type": place.accelerator,
            "resources": dict(place.resources),
            "memory": int(min(step.memory, _MEMORY_SHARE * largest)),
        }
        if place.alone:
            facts |= self._whole_node(nodes)
        self._running[self._task.options(**facts).remote(step, self._store)] = step

    def _whole_node(self, nodes: list[Mapping[str, Any]]) -> dict[str, Any]:
        """All processors of one node: every step asks for one, so that none shares it. The benches go round."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = min(nodes, key=lambda one: self._benches[one["NodeID"]])
        self._benches[node["NodeID"]] += 1
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        return {"num_cpus": node["Resources"]["CPU"], "scheduling_strategy": strategy}

    def wait(self, seconds: float) -> list[tuple[Step, Outcome | None]]:
        """What tasks answer, or what Ray says of those that died."""
        found: list[tuple[Step, Outcome | None]] = [*self._refused]
        self._refused = []
        if found or not self._running:
            return found
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        for reference in ready:
            step = self._running.pop(reference)
            try:
                found.append((step, self._ray.get(reference)))
            except self._ray.exceptions.RayError as error:
                cause = f"its process on the cluster died: {named_line(error)}"
                outcome = Outcome(step.name, step.kind, step.model, "failed", error=cause, exit_code=_DIED)
                found.append((step, outcome))
        return found

    def cancel(self) -> None:
        """End the tasks; what they were making is swept away by the next run."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running = {}

    def close(self) -> None:
        """Leave the cluster; one that was started for this run ends."""
        self.cancel()
        self._ray.shutdown()


def _needs(step: Step) -> dict[str, float]:
    """Resources of a step by the names that Ray gives them."""
    place = step.place
    needs = {"CPU": 1.0, **place.resources}
    if place.gpus:
        needs["GPU"] = place.gpus
    if place.accelerator is not None:
        needs[f"accelerator_type:{place.accelerator}"] = 0.001
    return needs


def _has(resources: Mapping[str, float], step: Step) -> bool:
    return all(resources.get(name, 0) >= amount for name, amount in _needs(step).items())


def _do(step: Step, store: str) -> Outcome | None:
    """A task. What must be alone runs in a fresh process, whose numbers of threads Ray does not limit."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    from convbn.pipeline.runners.machine import Machine
    from convbn.pipeline.runners.workers import LocalRunner

    if not step.place.alone:
        with Machine() as machine:
            machine.wait()
            return perform(step, opened(store))
    os.environ.pop("OMP_NUM_THREADS", None)
    with LocalRunner(1, retries=0, store=store) as runner:
        while not runner.has_room(step):
            time.sleep(_AGAIN)
        runner.submit(step)
        while True:
            for _, outcome in runner.wait(1.0):
                return outcome
