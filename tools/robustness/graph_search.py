"""The laws of random graphs and modules with other seeds than those of the tests: ``fuzz.py graphs``."""

from __future__ import annotations

import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from support import graph_laws, module_laws
from support.random_graphs import graphs
from support.random_modules import modules


@dataclass(frozen=True)
class Law:
    """What must hold, for what is drawn so, and for how many of them in one go."""

    name: str
    holds: Callable[..., None]
    drawn: st.SearchStrategy[Any]
    more: tuple[Any, ...] = ()
    examples: int = 100
    shrinks: bool = True


LAWS = (
    *(Law(f"graph in {kind}", graph_laws.check, graphs(kind), (kind,)) for kind in ("float32", "float16")),
    *(
        Law(f"graph in {kind}, reference evaluator", graph_laws.check_in_float64, graphs(kind), (kind,))
        for kind in ("float64", "float32")
    ),
    Law("graph, both judges", graph_laws.check_judges, graphs()),
    *(
        Law(name, law, modules(), examples=examples, shrinks=False)
        for name, law, examples in (
            ("module", module_laws.check_module, 20),
            ("module without inputs", module_laws.check_traced, 100),
            ("exported program", module_laws.check_program, 20),
            ("module in float32", module_laws.check_in_float32, 20),
            ("module through ONNX", module_laws.check_through_onnx, 5),
        )
    ),
)


def search(start: int, minutes: float, folder: Path) -> int:
    """One law after the other, each time with the next seed, until one fails (1) or the time is over (0).

    What failed first is shrunk where that is quick, and lies in ``folder``: a graph as file, a module as text.
    The same ``start`` finds it again, as the line that is printed says.
    """
    end, number, tried = time.monotonic() + minutes * 60, start, Counter[str]()
    while True:
        law = LAWS[number % len(LAWS)]
        failure = _tried(law, number, folder)
        if failure is not None:
            print(
                f"{failure}\n{law.name}: seed {number}; again by: fuzz.py graphs --start {number} --minutes 0"
            )
            return 1
        tried[law.name] += law.examples
        number += 1
        if time.monotonic() >= end:
            print(f"seeds {start} to {number - 1}: {dict(tried)}", flush=True)
            return 0


def _tried(law: Law, number: int, folder: Path) -> str | None:
    """Hypothesis' own account of a failure, with the blob that reproduces it."""
    # A smaller module costs minutes of exports; a smaller graph does not, and a graph has no repr to read.
    phases = [Phase.generate, Phase.shrink] if law.shrinks else [Phase.generate]

    @seed(number)
    @settings(
        max_examples=law.examples,
        deadline=None,
        database=None,
        print_blob=True,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(law.drawn)
    def holds(drawn: Any) -> None:
        try:
            law.holds(drawn, *law.more)
        except Exception:  # whatever it is, it is what was searched for
            _keep(drawn, folder, number)
            raise

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, about layers that are drawn on purpose
            holds()
    except Exception as error:  # Hypothesis gives on what the law raised, of any class
        return "".join(traceback.format_exception(error))
    return None


def _keep(drawn: Any, folder: Path, number: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(drawn, onnx.ModelProto):
        onnx.save(drawn, folder / f"graph-{number}.onnx")
    else:
        (folder / f"module-{number}.txt").write_text(f"{drawn!r}\nseed {drawn.seed}\n", encoding="utf-8")
