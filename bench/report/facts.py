"""What every report says, in words and numbers; the renderers only lay it out.

All text that comes from a model, a path or an error goes through :func:`clean`: names are chosen by
whoever made the file.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = [
    "batchnorm_sentence",
    "clean",
    "environment_lines",
    "equality_entries",
    "fold_groups",
    "into_text",
    "measured",
    "number",
    "option_lines",
    "ratio_text",
    "seconds_text",
    "sentences",
    "shape_text",
    "title_of",
]

_NAME_LIMIT = 120
#: Categories that draw nothing or move what is drawn: controls, bidi overrides, surrogates, separators.
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def clean(text: object, limit: int = _NAME_LIMIT) -> str:
    """Text that can be shown: invisible characters become ``⟨U+202E⟩``, the middle of long text ``…``.

    Args:
        text: anything; None becomes an empty text.
        limit: most characters of the result.

    Returns:
        One line without control characters and bidirectional overrides. It still has to be escaped for
        the format it goes to.
    """
    raw = "" if text is None else str(text)
    if len(raw) > limit:
        half = limit // 2
        raw = f"{raw[:half]}…{raw[len(raw) - half :]}"
    raw = " ".join(raw.split())
    shown = "".join(
        f"⟨U+{ord(char):04X}⟩" if unicodedata.category(char) in _INVISIBLE else char for char in raw
    )
    return shown if len(shown) <= limit * 2 else f"{shown[: limit * 2]}…"


def seconds_text(value: float) -> str:
    """A time with three or four significant digits and its unit, as in ``1.234 ms``."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale:
            scaled = value / scale
            digits = 3 if scaled < 10 else 2 if scaled < 100 else 1
            return f"{scaled:.{digits}f} {unit}"
    return f"{value * 1e9:.0f} ns"


def number(value: float | None) -> str:
    """A measured error in two significant digits; ``–`` where there is none."""
    return "–" if value is None else f"{value:.2g}"


def ratio_text(ratio: Mapping[str, Any]) -> str:
    """A time ratio, never without its interval: ``0.787 [0.781, 0.793]``."""
    return f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def shape_text(shape: Sequence[int]) -> str:
    """A shape as ``1×3×224×224``."""
    return "×".join(str(size) for size in shape) or "scalar"


def title_of(result: Mapping[str, Any]) -> str:
    """The title, or what was compared."""
    if result.get("title"):
        return clean(result["title"])
    return " against ".join(clean(model["name"], 60) for model in reversed(result["models"][:2]))


def measured(row: Mapping[str, Any]) -> bool:
    """Whether a row holds times."""
    return bool(row["status"] == "measured")


def sentences(result: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """One sentence for each side but the baseline in each runtime.

    Args:
        result: by the published schema.

    Yields:
        The row and its sentence. Where nothing at all was measured in a runtime, the baseline's row
        stands for all of them.
    """
    base = clean(result["models"][0]["name"])
    for runtime in result["runtimes"]:
        rows = [row for row in result["rows"] if row["runtime"] == runtime["runtime"]]
        if not measured(rows[0]):
            yield rows[0], f"Nothing was measured: {clean(rows[0]['reason'], 400)}."
            continue
        if len(rows) == 1:
            median = seconds_text(rows[0]["latency_seconds"]["median"])
            yield rows[0], f"{base} takes {median} (median); there was nothing to compare it with."
        for row in rows[1:]:
            yield row, _sentence(row, base)


def _sentence(row: Mapping[str, Any], base: str) -> str:
    name = clean(row["side"])
    if not measured(row):
        return f"{name} was not measured: {clean(row['reason'], 400)}."
    ratio = row["ratio"]
    if row["verdict"] == "no difference detected":
        return (
            f"No difference detected between {name} and {base}: time ratio {ratio['median']:.3f}, "
            f"{_percent(ratio['confidence'])} interval {ratio['low']:.3f} to {ratio['high']:.3f}."
        )
    gain = [abs(1.0 - value) * 100 for value in (ratio["median"], ratio["low"], ratio["high"])]
    less = "less" if row["verdict"] == "faster" else "more"
    low, high = sorted(gain[1:])
    return (
        f"{name} takes {gain[0]:.1f} % {less} time than {base} "
        f"({_percent(ratio['confidence'])} interval {low:.1f} to {high:.1f} %)."
    )


def _percent(share: float) -> str:
    return f"{share * 100:g} %"


def batchnorm_sentence(fold: Mapping[str, Any]) -> str:
    """How many BatchNorms and nodes there were and are."""
    norms, nodes = fold["batchnorm"], fold["nodes"]
    return (
        f"{norms['before'] - norms['after']} of {norms['before']} BatchNorms folded, {norms['after']} kept; "
        f"{nodes['before']} nodes became {nodes['after']}."
    )


def fold_groups(fold: Mapping[str, Any]) -> list[tuple[str, int, bool]]:
    """BatchNorms by what became of them: (rule or reason, how many, folded?), folded and frequent first."""
    went = Counter(clean(entry["rule"], 60) for entry in fold["folded"])
    stayed = Counter(clean(entry["reason"], 60) for entry in fold["kept"])
    return [(name, count, True) for name, count in went.most_common()] + [
        (name, count, False) for name, count in stayed.most_common()
    ]


def into_text(into: str | Sequence[str]) -> str:
    """The nodes that took a BatchNorm in."""
    return clean(into if isinstance(into, str) else ", ".join(into), 200)


def equality_entries(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each comparison of outputs with what was compared where."""
    fold = result.get("fold") or {}
    verify = fold.get("verify") or {}
    if verify.get("outputs"):
        yield f"the fold itself ({clean(verify.get('runtime'))})", verify
    for row in result["rows"]:
        if row["equality"] is not None:
            yield f"{clean(row['side'])} in {clean(row['runtime'])}", row["equality"]


def environment_lines(environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The environment as label and value."""
    cores = environment["cores"]
    yield "CPU", f"{clean(environment['cpu'] or 'unknown')}" + (f", {cores} cores usable" if cores else "")
    for gpu in environment["gpus"]:
        yield "GPU", ", ".join(f"{clean(key, 40)}: {clean(value, 60)}" for key, value in gpu.items())
    yield "System", clean(environment["os"])
    yield "Python", clean(environment["python"])
    for name, version in environment["libraries"].items():
        yield clean(name, 40), clean(version, 60)
    if environment["load_average"] is not None:
        yield "Load average", f"{environment['load_average']:.2f} over the last minute"


def option_lines(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What has to be the same to measure the same again, as label and value."""
    for model in result["models"]:
        if model["sha256"]:
            yield f"SHA-256 of {clean(model['path'] or model['name'])}", clean(model["sha256"])
    for spec in result["inputs"]:
        yield f"Input {clean(spec['name'])}", f"{clean(spec['dtype'], 20)} {shape_text(spec['shape'])}"
    options = result["options"]
    threads = options["threads"]
    yield "Seed", str(options["seed"])
    yield "Threads", "each runtime's default" if threads is None else str(threads)
    yield "Blocks", f"at least {options['min_blocks']} of {seconds_text(options['block_seconds'])}"
    budget, warm = seconds_text(options["budget_seconds"]), seconds_text(options["warmup_seconds"])
    yield "Budget", f"{budget} a runtime, warm-up up to {warm} a session"
