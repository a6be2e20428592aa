"""Two results of the same machine: what changed between them, with intervals.

Within a result the sides are timed in pairs; between two results nothing is paired, and the machine may
have drifted. So a side is compared through a reference where there is one: if the baseline model is the
same file in both, what is compared is the side's time ratio to it. Else it is the time itself, and the
report says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from convbn.bench.results.statistics import Ratio, Verdict, unpaired_ratio
from convbn.common.encoding import JsonReady
from convbn.common.text import clean
from convbn.errors import BadInputError

__all__ = [
    "Change",
    "ComparedResults",
    "MachineDiffersError",
    "check_machines",
    "compare",
    "machine_differences",
]

ChangeVerdict: TypeAlias = Verdict | Literal["only before", "only after"]
Basis: TypeAlias = Literal["time ratio", "time"]
_SEED = 0


class MachineDiffersError(BadInputError):
    """Two results come from different machines, so their times say nothing about each other."""


@dataclass(frozen=True)
class Change(JsonReady):
    """One side in one runtime of one case, before and after.

    Attributes:
        case: identifier of the case.
        runtime: its name.
        side: its name.
        before: median seconds in the old result; None if it was not measured.
        after: likewise in the new one.
        basis: what ``ratio`` compares: times, or time ratios to a baseline model that is the same file.
        ratio: after / before with its interval; None unless it was measured in both.
        noise_floor: effects below are not called differences: the noise floors of both results together.
        verdict: what it shows.
        is_reference: whether this is the baseline model, the same file in both: its change is the
            machine's (or its software's), not the model's.
    """

    case: str
    runtime: str
    side: str
    before: float | None
    after: float | None
    basis: Basis
    ratio: Ratio | None
    noise_floor: float | None
    verdict: ChangeVerdict
    is_reference: bool = field(metadata={"json": "yardstick"})


@dataclass(frozen=True)
class ComparedResults(JsonReady):
    """What changed between two results.

    Attributes:
        changes: in the order of the new result, then what only the old one has.
        machine: how the machines differ, in words; empty if they are the same.
        software: how versions differ, in words.
    """

    changes: tuple[Change, ...]
    machine: tuple[str, ...]
    software: tuple[str, ...]


def machine_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """How two environments differ as machines: CPU, usable cores, GPUs.

    Args:
        before: environment by the published schema.
        after: likewise.

    Returns:
        Differences in words.
    """
    old_gpus, new_gpus = (
        ", ".join(str(gpu.get("name")) for gpu in one["gpus"]) or "none" for one in (before, after)
    )
    pairs = (
        ("CPU", before["cpu"], after["cpu"]),
        ("cores", before["cores"], after["cores"]),
        ("GPU", old_gpus, new_gpus),
    )
    return [f"{name} {clean(old, 60)} → {clean(new, 60)}" for name, old, new in pairs if old != new]


def check_machines(before: Mapping[str, Any], after: Mapping[str, Any], *, source: object, way: str) -> None:
    """Refuse results of different machines.

    Args:
        before: environment by the published schema.
        after: likewise.
        source: the file with the old result.
        way: the option that compares them all the same.

    Raises:
        MachineDiffersError: CPU, usable cores or GPUs differ.
    """
    found = machine_differences(before, after)
    if found:
        raise MachineDiffersError(
            f"measured on another machine ({'; '.join(found)})",
            source=source,
            hint=f"measure it again here, or say {way} if that is what you want to compare",
        )


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> ComparedResults:
    """What changed between two results.

    Args:
        before: the old result, by the published schema.
        after: the new one.

    Returns:
        The changes; the caller decides what to do about different machines.
    """
    old = {_key(case, row): (case, row) for case in before["cases"] for row in case["rows"]}
    new = {_key(case, row): (case, row) for case in after["cases"] for row in case["rows"]}
    changes = [_change(key, old.get(key), new.get(key)) for key in (*new, *(k for k in old if k not in new))]
    return ComparedResults(
        tuple(change for change in changes if change is not None),
        tuple(machine_differences(before["environment"], after["environment"])),
        tuple(_software(before["environment"], after["environment"])),
    )


_Found: TypeAlias = tuple[Mapping[str, Any], Mapping[str, Any]]
_Key: TypeAlias = tuple[str, str, str]


def _key(case: Mapping[str, Any], row: Mapping[str, Any]) -> _Key:
    return case["id"], row["runtime"], row["side"]


def _change(key: _Key, before: _Found | None, after: _Found | None) -> Change | None:
    old, new = _median(before), _median(after)
    if before is None or after is None or old is None or new is None:
        if old is None and new is None:
            return None
        verdict: ChangeVerdict = "only before" if new is None else "only after"
        return Change(*key, old, new, "time", None, None, verdict, False)
    same_file = _same_baseline(before[0], after[0])
    through = same_file and before[1]["ratio"] is not None and after[1]["ratio"] is not None
    samples = [_samples(*found, through=through) for found in (before, after)]
    ratio = unpaired_ratio(samples[1], samples[0], seed=_SEED)
    floor = sum(_floor(*found) for found in (before, after))
    return Change(
        *key,
        old,
        new,
        "time ratio" if through else "time",
        ratio,
        floor,
        ratio.verdict(floor),
        same_file and after[1]["verdict"] == "baseline",
    )


def _median(found: _Found | None) -> float | None:
    if found is None or found[1]["latency_seconds"] is None:
        return None
    return float(found[1]["latency_seconds"]["median"])


def _same_baseline(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    one, other = before["sides"][0]["sha256"], after["sides"][0]["sha256"]
    return one is not None and one == other


def _samples(case: Mapping[str, Any], row: Mapping[str, Any], *, through: bool) -> list[float]:
    blocks: Sequence[float] = row["block_seconds"]
    if not through:
        return list(blocks)
    name = case["sides"][0]["name"]
    base = next(r for r in case["rows"] if r["runtime"] == row["runtime"] and r["side"] == name)
    return [block / other for block, other in zip(blocks, base["block_seconds"], strict=False) if other > 0]


def _floor(case: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    return next((c["noise_floor"] or 0.0 for c in case["runtimes"] if c["runtime"] == row["runtime"]), 0.0)


def _software(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    old, new = ({"system": one["os"], "Python": one["python"], **one["libraries"]} for one in (before, after))
    for name in (*new, *(n for n in old if n not in new)):
        if old.get(name) != new.get(name):
            yield f"{clean(name, 40)} {clean(old.get(name, 'none'), 60)} → {clean(new.get(name, 'none'), 60)}"
