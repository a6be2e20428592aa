"""A folder of results as series over time, one for each side in each runtime of each case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from convbn.bench.results.compare import Change, compare
from convbn.bench.results.read import read_result
from convbn.common.text import clean
from convbn.errors import BadInputError, ConvBNError, FileAccessError

__all__ = ["History", "Machine", "Run", "Series", "read_history"]

Point: TypeAlias = tuple[float, float, float]
_MOST_FILES = 1000


@dataclass(frozen=True)
class Run:
    """One result of the folder: its file's name, when it was measured, and the result."""

    name: str
    created: str
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Series:
    """One side in one runtime of one case.

    Attributes:
        case: identifier.
        name: of the model.
        runtime: its name.
        side: its name.
        ratios: low, median and high of the time ratio in each run; None where there is none.
        times: quartiles of the time in seconds, likewise.
        last: the change between the last two runs that measured it; None if there are not two.
    """

    case: str
    name: str
    runtime: str
    side: str
    ratios: tuple[Point | None, ...]
    times: tuple[Point | None, ...]
    last: Change | None


@dataclass(frozen=True)
class Machine:
    """The runs of one machine, oldest first, and what they measured."""

    label: str
    runs: tuple[Run, ...]
    series: tuple[Series, ...]


@dataclass(frozen=True)
class History:
    """The machines, the one with the newest run first; and the files that were left out, with the reason."""

    machines: tuple[Machine, ...]
    left_out: tuple[tuple[str, str], ...]


def read_history(folder: str | Path) -> History:
    """Read the results in a folder.

    Args:
        folder: with JSON files of ``convbn bench --json``; other JSON files are left out, with a reason.

    Returns:
        The series, apart for each machine: times of different machines are no series.

    Raises:
        FileAccessError: the folder cannot be read.
        BadInputError: it holds no result.
    """
    place = Path(folder)
    try:
        files = sorted(path for path in place.iterdir() if path.suffix.lower() == ".json" and path.is_file())
    except OSError as error:
        raise FileAccessError(
            f"cannot be read: {error.strerror}", source=folder, hint="name a folder with results"
        ) from error
    runs, left_out = [], []
    for path in files[-_MOST_FILES:]:
        try:
            result = read_result(path)
        except ConvBNError as error:
            left_out.append((path.name, error.cause))
            continue
        runs.append(Run(path.name, result["created"], result))
    left_out += [(path.name, f"older than the last {_MOST_FILES} by name") for path in files[:-_MOST_FILES]]
    if not runs:
        raise BadInputError(
            "holds no result of convbn bench", source=folder, hint="write one there with convbn bench --json"
        )
    runs.sort(key=lambda run: run.created)
    groups: dict[str, list[Run]] = {}
    for run in reversed(runs):
        groups.setdefault(_machine(run.result["environment"]), []).insert(0, run)
    machines = tuple(Machine(label, tuple(found), tuple(_series(found))) for label, found in groups.items())
    return History(machines, tuple(left_out))


def _machine(environment: Mapping[str, Any]) -> str:
    gpus = [clean(gpu.get("name"), 60) for gpu in environment["gpus"]]
    cores = [f"{environment['cores']} cores"] if environment["cores"] else []
    return ", ".join([clean(environment["cpu"] or "unknown CPU", 80), *cores, *gpus])


def _series(runs: Sequence[Run]) -> list[Series]:
    names: dict[tuple[str, str, str], str] = {}
    tables: list[dict[tuple[str, str, str], Mapping[str, Any]]] = []
    for run in runs:
        table = {}
        for case in run.result["cases"]:
            for row in case["rows"]:
                key = (case["id"], row["runtime"], row["side"])
                names[key] = case["name"]
                if row["latency_seconds"] is not None:
                    table[key] = row
        tables.append(table)
    return [
        Series(
            key[0],
            name,
            *key[1:],
            tuple(_point(table.get(key), "ratio", "low", "median", "high") for table in tables),
            tuple(_point(table.get(key), "latency_seconds", "p25", "median", "p75") for table in tables),
            _last(key, runs, tables),
        )
        for key, name in names.items()
        if any(key in table for table in tables)
    ]


def _point(row: Mapping[str, Any] | None, group: str, *keys: str) -> Point | None:
    """Low, middle and high of a group of a row; None where it has none."""
    values = None if row is None else row[group]
    if values is None:
        return None
    low, middle, high = (values[key] for key in keys)
    return low, middle, high


def _last(
    key: tuple[str, str, str],
    runs: Sequence[Run],
    tables: Sequence[Mapping[tuple[str, str, str], Mapping[str, Any]]],
) -> Change | None:
    having = [run for run, table in zip(runs, tables, strict=True) if key in table][-2:]
    if len(having) < 2:
        return None
    changes = compare(_only(having[0].result, key), _only(having[1].result, key)).changes
    return next((c for c in changes if (c.case, c.runtime, c.side) == key), None)


def _only(result: Mapping[str, Any], key: tuple[str, str, str]) -> dict[str, Any]:
    """The result with nothing but one side in one runtime of one case, and its baseline."""
    case_id, runtime, side = key
    case = next(case for case in result["cases"] if case["id"] == case_id)
    needed = (side, case["sides"][0]["name"])
    rows = [row for row in case["rows"] if row["runtime"] == runtime and row["side"] in needed]
    return {**result, "cases": [{**case, "rows": rows}]}
