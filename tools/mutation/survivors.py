"""The survivors that are known, and why they change no result."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

LISTED = Path(__file__).with_name("survivors.toml")

KINDS = {
    "same": "does the same for every input that can reach it",
    "text": "changes the wording of a message",
    "speed": "gives the same result with more or less work",
}


@dataclass(frozen=True)
class Known:
    """Why a survivor may survive.

    Attributes:
        kind: one of ``KINDS``.
        why: a sentence that can be checked.
    """

    kind: str
    why: str


def known() -> dict[str, Known]:
    """Every listed survivor by its key.

    Raises:
        ValueError: one stands there twice or is of a kind that there is not.
    """
    listed: dict[str, Known] = {}
    for entry in tomllib.loads(LISTED.read_text()).get("survivors", []):
        if entry["kind"] not in KINDS:
            raise ValueError(f"{LISTED}: {entry['kind']} is none of {', '.join(KINDS)}")
        for mutant in entry["mutants"]:
            if mutant in listed:
                raise ValueError(f"{LISTED}: {mutant} stands there twice")
            listed[mutant] = Known(entry["kind"], entry["why"])
    return listed
