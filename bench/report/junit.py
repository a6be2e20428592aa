"""Gates, and steps of a run, as JUnit XML, for the test view of a CI system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from convbn.common.text import clean

__all__ = ["Case", "render", "suite"]

_TAGS = {"failed": "failure", "not judged": "error", "skipped": "skipped"}


@dataclass(frozen=True, slots=True)
class Case:
    """A test case.

    Attributes:
        where: name of its class, with dots.
        name: of it.
        seconds: that it took.
        tag: ``failure``, ``error`` or ``skipped``; None if it passed.
        text: why.
        kind: of what was wrong.
    """

    where: str
    name: str
    seconds: float = 0.0
    tag: str | None = None
    text: str = ""
    kind: str = "gate"


def render(result: Mapping[str, Any], gates: Sequence[Mapping[str, Any]]) -> str:
    """One suite with a test case for each gate, model, runtime and side.

    Args:
        result: by the published schema.
        gates: outcomes (``convbn.bench.gates``).

    Returns:
        XML in the form that Jenkins, GitLab and GitHub actions read. A gate that could not be judged is
        an error.
    """
    cases = []
    for gate in gates:
        where = ".".join(clean(gate[key], 100) for key in ("case", "runtime") if gate[key])
        must = gate.get("must")
        told = f"must hold: {clean(must, 200)}" if must else clean(gate["gate"], 200)
        name = ": ".join(part for part in (clean(gate["side"], 100), told) if part)
        tag = _TAGS.get(gate["status"])
        cases.append(
            Case(f"convbn.{where}" if where else "convbn", name, tag=tag, text=clean(gate["sentence"], 400))
        )
    return suite("convbn bench", cases, seconds=result["seconds"], created=result["created"])


def suite(name: str, cases: Sequence[Case], *, seconds: float, created: str) -> str:
    """Test cases as one suite.

    Args:
        name: of the suite.
        cases: in their order.
        seconds: that all took.
        created: when they began, ISO 8601.
    """
    counts = {
        plural: str(sum(case.tag == tag for case in cases))
        for plural, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))
    }
    shared = {"name": name, "tests": str(len(cases)), **counts, "time": f"{seconds:.3f}"}
    root = ElementTree.Element(
        "testsuites", {key: value for key, value in shared.items() if key != "skipped"}
    )
    element = ElementTree.SubElement(root, "testsuite", shared | {"timestamp": _timestamp(created)})
    for case in cases:
        facts = {
            "classname": case.where,
            "name": case.name,
            "time": f"{case.seconds:.3f}".removesuffix(".000"),
        }
        test = ElementTree.SubElement(element, "testcase", facts)
        if case.tag is not None:
            told = {"message": case.text, "type": case.kind}
            ElementTree.SubElement(test, case.tag, told).text = case.text
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _timestamp(created: str) -> str:
    # ISO 8601 without an offset is what the schema's readers expect; the result's time is UTC.
    return clean(created, 40).removesuffix("+00:00").removesuffix("Z").partition(".")[0]
