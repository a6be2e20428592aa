"""Gates as JUnit XML, for the test view of a CI system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from convbn.common.text import clean

__all__ = ["render"]

_TAGS = {"failed": "failure", "not judged": "error", "skipped": "skipped"}


def render(result: Mapping[str, Any], gates: Sequence[Mapping[str, Any]]) -> str:
    """One suite with a test case for each gate, model, runtime and side.

    Args:
        result: by the published schema.
        gates: outcomes (``convbn.bench.gates``).

    Returns:
        XML in the form that Jenkins, GitLab and GitHub actions read. A gate that could not be judged is
        an error.
    """
    counts = {
        name: str(sum(gate["status"] == status for gate in gates))
        for name, status in (("failures", "failed"), ("errors", "not judged"), ("skipped", "skipped"))
    }
    shared = {"name": "convbn bench", "tests": str(len(gates)), **counts, "time": f"{result['seconds']:.3f}"}
    root = ElementTree.Element(
        "testsuites", {key: value for key, value in shared.items() if key != "skipped"}
    )
    suite = ElementTree.SubElement(root, "testsuite", shared | {"timestamp": _timestamp(result["created"])})
    for gate in gates:
        where = ".".join(clean(gate[key], 100) for key in ("case", "runtime") if gate[key])
        name = ": ".join(part for part in (clean(gate["side"], 100), clean(gate["gate"], 200)) if part)
        test = ElementTree.SubElement(
            suite,
            "testcase",
            {"classname": f"convbn.{where}" if where else "convbn", "name": name, "time": "0"},
        )
        if gate["status"] in _TAGS:
            text = clean(gate["sentence"], 400)
            ElementTree.SubElement(test, _TAGS[gate["status"]], {"message": text, "type": "gate"}).text = text
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _timestamp(created: str) -> str:
    # ISO 8601 without an offset is what the schema's readers expect; the result's time is UTC.
    return clean(created, 40).removesuffix("+00:00").removesuffix("Z").partition(".")[0]
