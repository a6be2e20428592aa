"""The machine and the versions that a figure in the documents was seen with."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

from convbn.bench.results.environment import describe_environment


def machine(*packages: str) -> dict[str, Any]:
    """What a script ran on: date, processor, cores, system, Python and the versions of the packages named."""
    here = describe_environment()
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": here["cpu"],
        "cores": here["cores"],
        "system": here["os"],
        "python": here["python"],
        **{name: version(name) for name in packages},
    }
