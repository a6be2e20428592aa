"""The API reference: a page for each kind of public name, from its docstring and signature."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import convbn

__all__ = ["undocumented", "write"]

_PAGES = {
    "functions": ("Functions", "What `convbn` does, call by call. Nothing is imported before it is called."),
    "types": ("Types", "Options that go in, and results that come out."),
    "errors": ("Errors", "Every error says what file or argument it is about, the cause, and the way out."),
}


def write(folder: Path) -> None:
    """Write the pages into ``folder``, as directives for mkdocstrings.

    Raises:
        SystemExit: A public name, or a public member of one, has no docstring.
    """
    missing = undocumented()
    if missing:
        raise SystemExit("public names without a docstring: " + ", ".join(missing))
    folder.mkdir(parents=True, exist_ok=True)
    for page, (title, sentence) in _PAGES.items():
        parts = [f"# {title}\n\n{sentence}\n"]
        for name in sorted(convbn.__all__):
            value = _named(name)
            if _page_of(value) == page:
                parts.append(f"## `convbn.{name}`\n\n::: {value.__module__}.{value.__qualname__}\n")
        (folder / f"{page}.md").write_text("\n".join(parts), encoding="utf-8")


def undocumented() -> list[str]:
    """The public names, and their public methods and properties, that say nothing of themselves."""
    missing = []
    for name in convbn.__all__:
        value = _named(name)
        members = vars(value).items() if inspect.isclass(value) else ()
        public = [(name, value)] + [
            (f"{name}.{member}", held)
            for member, held in members
            if not member.startswith("_") and (inspect.isfunction(held) or isinstance(held, property))
        ]
        missing += [spelt for spelt, held in public if not (held.__doc__ or "").strip()]
    return missing


def _named(name: str) -> Any:
    """The public object, where a callable package stands for the function of its name."""
    value = getattr(convbn, name)
    return value.__wrapped__ if inspect.ismodule(value) else value


def _page_of(value: Any) -> str:
    if inspect.isclass(value):
        return "errors" if issubclass(value, BaseException) else "types"
    return "functions"
