"""What a worker does with one file of many: the verb, as if this file alone had been given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from convbn.export.onnx_io.locations import stored_bytes
from convbn.fuse.summary import worst_output
from convbn.pipeline.works import Result, verb

__all__ = ["one"]


def one(arguments: list[str], given: Mapping[str, Any]) -> Result:
    """Run the verb.

    Args:
        arguments: the command line as it was typed, for many files.
        given: what this file changes in it, by the name of the option.

    Returns:
        The verb's JSON, with what a table of many models shows of it.
    """
    output = given.get("output")
    result = verb(arguments, given=given, outputs=[] if output is None else [output])
    if result.report is None:
        return result
    return Result(
        facts(result.report, output) | {"report": result.report},
        result.error,
        result.exit_code,
        result.outputs,
    )


def facts(report: Mapping[str, Any], output: str | None) -> dict[str, Any]:
    """Of a verb's JSON, what stands in the table: BatchNorms, size of the result, what the proof says."""
    found: dict[str, Any] = {}
    if "batchnorm" in report:
        found["batchnorm"] = report["batchnorm"]
    if output is not None and os.path.exists(output):
        found["bytes"] = stored_bytes(output)
    compared = report.get("verify", report)
    worst = worst_output(compared.get("outputs") or ())
    if worst is not None:
        error, noise = worst.get("rel_error"), worst.get("noise")
        found |= {"status": compared["status"], "error": error, "noise": noise}
    return found
