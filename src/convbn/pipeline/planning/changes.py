"""What is different since the last run of a plan, so that each step can say why it would run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from convbn.errors import FileAccessError
from convbn.export.loading.remote import is_url, shown
from convbn.pipeline.outcome import Outcome
from convbn.pipeline.planning.expand import Expansion
from convbn.pipeline.planning.models import Model, digest
from convbn.pipeline.planning.plan import Plan
from convbn.pipeline.step import Step
from convbn.pipeline.store import Store

__all__ = ["LastRun"]


class LastRun:
    """What the last run of a plan on a store was made of, and which files it delivered.

    Args:
        plan: whose runs are meant; a plan is known by the path of its file, or where its store is at a URL and may be
            used on several machines, by its name and where it delivers to.
        store: of results.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        known_by = (plan.name, shown(plan.output)) if is_url(plan.store) else (plan.path,)
        self._name, self._store = digest(*known_by)[:16], store
        self._facts: dict[str, Any] = {}
        with suppress(ValueError):  # without it every step is new
            self._facts = dict(json.loads(store.note(self._name) or b"{}"))

    @property
    def delivered(self) -> Mapping[str, str]:
        """Files that it delivered, each with its SHA-256."""
        found: dict[str, str] = self._facts.get("delivered", {})
        return found

    def reason(self, step: Step, models: Mapping[str, Model], expansion: Expansion) -> str:
        """Why a step would run whose result is not in the store: it is new, changed or unfinished."""
        model = self._facts.get("models", {}).get(step.model)
        if model is None:
            return "new: the last run had no such model"
        if model != models[step.model].digest:
            return "changed: the model, or how it is read"
        parts, versions = self._facts.get("parts", {}), self._facts.get("versions", {})
        for part in dict.fromkeys(("fold", step.part)):
            if part not in parts:
                return f"new: the last run had no {part}"
            if parts[part] != expansion.parts[part]:
                return f"changed: what the plan says of {part}"
        for name, now in expansion.versions.items():
            if versions.get(name) != now:
                return f"changed: {name} {versions.get(name, 'was not installed')} → {now}"
        return "unfinished: not done last time, or no longer in the store"

    def keep(self, models: Iterable[Model], expansion: Expansion, outcomes: Sequence[Outcome]) -> None:
        """Note what this run is made of and has delivered; where that cannot be written, it is not known next time."""
        delivered = dict(self.delivered)
        for outcome in outcomes:
            delivered |= {
                output.path: output.sha256 for output in outcome.outputs if output.sha256 is not None
            }
        facts = {
            "models": {model.name: model.digest for model in models},
            "parts": dict(expansion.parts),
            "versions": dict(expansion.versions),
            "delivered": delivered,
        }
        with suppress(FileAccessError):
            self._store.keep_note(self._name, json.dumps(facts).encode())
