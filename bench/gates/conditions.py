"""``--fail-if``: a small language of comparisons, ``and``, ``or`` and parentheses. Nothing is evaluated as code.

::

    condition := both { "or" both }
    both      := atom { "and" atom }
    atom      := "(" condition ")" | field operator value
    operator  := ">" | ">=" | "<" | "<=" | "==" | "!="
    value     := number [unit] | word
"""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from convbn.bench.gates.fields import FIELDS, UNITS, Field, Judged, Value
from convbn.common.text import did_you_mean
from convbn.errors import UsageError

__all__ = ["Atom", "Condition", "Junction", "parse", "shown"]

_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
_OPPOSITES = {">": "≤", ">=": "<", "<": "≥", "<=": ">", "==": "≠", "!=": "="}
_TOKEN = re.compile(
    r"\s*(?:(?P<operator>[<>]=?|[=!]=)|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
    r"|(?P<name>[^\W\d][\w.]*)|(?P<bracket>[()]))"
)
_WORDS = ("faster", "slower", "same")
_MOST_LETTERS = 1000
_HINT = "write it as in --fail-if 'ratio > 1.02 or latency.p99 > 12 ms'"


@dataclass(frozen=True)
class Atom:
    """One comparison: a field, an operator, a value in the field's base unit, and as the user wrote it."""

    name: str
    operator: str
    value: float | str
    written: str = dataclasses.field(default="", compare=False)

    @property
    def opposite(self) -> str:
        """In words, what holds where this does not."""
        return f"{self.name} {_OPPOSITES[self.operator]} {self.written or self.value}"

    @property
    def field(self) -> Field:
        """What it speaks of."""
        return FIELDS[self.name]

    def judge(self, subject: Judged) -> bool | None:
        """Whether it holds; None if the field was not measured."""
        found = self.field.read(subject)
        return None if found is None else _OPERATORS[self.operator](found, self.value)

    def atoms(self) -> Iterator[Atom]:
        """Itself."""
        yield self


@dataclass(frozen=True)
class Junction:
    """Several conditions joined by ``and`` or ``or``; what is not known decides only where it matters."""

    word: str
    parts: tuple[Condition, ...]

    @property
    def opposite(self) -> str:
        """In words, what holds where this does not."""
        word = "and" if self.word == "or" else "or"
        told = (f"({p.opposite})" if isinstance(p, Junction) else p.opposite for p in self.parts)
        return f" {word} ".join(told)

    def judge(self, subject: Judged) -> bool | None:
        """Whether it holds; None if that depends on something that was not measured."""
        found = [part.judge(subject) for part in self.parts]
        decisive = self.word == "or"
        if decisive in found:
            return decisive
        return None if None in found else not decisive

    def atoms(self) -> Iterator[Atom]:
        """All comparisons in it."""
        for part in self.parts:
            yield from part.atoms()


Condition = Atom | Junction


def parse(text: str) -> Condition:
    """Read a condition.

    Args:
        text: as in ``ratio > 1.02 and latency.p99 > 12 ms``.

    Returns:
        The condition, its values in seconds and bytes.

    Raises:
        UsageError: it cannot be read, or names a field or unit that there is not.
    """
    if len(text) > _MOST_LETTERS:
        raise _wrong(text, f"longer than {_MOST_LETTERS} letters")
    reader = _Reader(text)
    found = reader.condition(0)
    if reader.peek is not None:
        raise _wrong(text, f"did not expect {reader.peek[1]!r}")
    return found


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._split())
        self.place = 0

    def _split(self) -> Iterator[tuple[str, str]]:
        place, end = 0, len(self.text.rstrip())
        while place < end:
            match = _TOKEN.match(self.text, place)
            if match is None:
                raise _wrong(self.text, f"cannot read {self.text[place:].strip()[:20]!r}")
            yield str(match.lastgroup), match[str(match.lastgroup)]
            place = match.end()

    @property
    def peek(self) -> tuple[str, str] | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None

    def take(self, kind: str, what: str) -> str:
        token = self.peek
        if token is None or token[0] != kind:
            raise _wrong(
                self.text, f"expected {what}" + (f" instead of {token[1]!r}" if token else " at the end")
            )
        self.place += 1
        return token[1]

    def condition(self, depth: int) -> Condition:
        return self._joined("or", lambda: self._joined("and", lambda: self.atom(depth)))

    def _joined(self, word: str, part: Callable[[], Condition]) -> Condition:
        parts = [part()]
        while self.peek == ("name", word):
            self.place += 1
            parts.append(part())
        return parts[0] if len(parts) == 1 else Junction(word, tuple(parts))

    def atom(self, depth: int) -> Condition:
        if self.peek == ("bracket", "("):
            if depth > 20:
                raise _wrong(self.text, "too many parentheses")
            self.place += 1
            inside = self.condition(depth + 1)
            if self.peek != ("bracket", ")"):
                raise _wrong(self.text, "a parenthesis is not closed")
            self.place += 1
            return inside
        name = self.take("name", "a field")
        if name not in FIELDS:
            hint = did_you_mean(name, FIELDS) or f"fields: {', '.join(FIELDS)}"
            raise _wrong(self.text, f"there is no field {name!r}", hint=hint)
        sign = self.take("operator", "an operator")
        start = self.place
        value = self.value(FIELDS[name], sign)
        return Atom(name, sign, value, " ".join(text for _, text in self.tokens[start : self.place]))

    def value(self, field: Field, sign: str) -> float | str:
        if field.unit == "word":
            word = self.take("name", "a word")
            if word not in _WORDS or sign not in ("==", "!="):
                raise _wrong(self.text, f"a verdict is compared by == or != with {', '.join(_WORDS)}")
            return word
        number = float(self.take("number", "a number"))
        units = UNITS[field.unit]
        token = self.peek
        if token is not None and token[0] == "name" and token[1] not in ("and", "or"):
            if token[1] not in units:
                known = f"units: {', '.join(units)}" if units else "it has no unit"
                raise _wrong(self.text, f"{token[1]!r} is not a unit of this field", hint=known)
            self.place += 1
            return number * units[token[1]]
        if units:
            raise _wrong(self.text, f"{number:g} has no unit", hint=f"units: {', '.join(units)}")
        return number


def shown(name: str, value: Value) -> str:
    """A value in words, in the unit people use."""
    from convbn.common.text import bytes_text, seconds_text

    if value is None or isinstance(value, str):
        return "not known" if value is None else value
    unit = FIELDS[name].unit
    if unit == "time":
        return seconds_text(value)
    return bytes_text(value) if unit == "size" else f"{value:.4g}"


def _wrong(text: str, cause: str, *, hint: str = _HINT) -> UsageError:
    return UsageError(cause, source=f"--fail-if {text[:80]!r}", hint=hint)
