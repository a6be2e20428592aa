"""What every report says, in words; the renderers only lay it out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from convbn.bench.results.comparisons import (
    SELF_FUSED,
    Comparison,
    Summary,
    case_label,
    comparisons,
    measured,
    summaries,
)
from convbn.common.text import clean, percent, plural, seconds_text, shape_text

__all__ = [
    "batchnorm_sentence",
    "environment_lines",
    "equality_entries",
    "fold_groups",
    "gate_counts",
    "is_reference",
    "noise_floors",
    "option_lines",
    "runtime_label",
    "sentence",
    "sentences",
    "summary_sentence",
    "title_of",
    "total_batchnorms",
    "verdict_words",
]


SAME_WITHIN = 0.05
"""Two sides count as the same where their interval holds 1 and neither it nor the noise reaches farther than this."""

_LABELS = {"torch-cpu": "eager PyTorch", "torch-cuda": "eager PyTorch on CUDA"}


def runtime_label(name: str) -> str:
    """What people call a runtime."""
    return _LABELS.get(name) or clean(name, 40)


def is_reference(side: str) -> bool:
    """Whether a side is there to compare with: what a runtime makes of the original by itself."""
    return side == SELF_FUSED


def verdict_words(verdict: str, ratio: Mapping[str, Any] | None, noise: float | None) -> str:
    """A verdict in a word or two: faster, slower, the same, or not proven and by how much it is in doubt.

    Args:
        verdict: by the published schema.
        ratio: it was found by.
        noise: floor of the runtime, as a share.
    """
    if verdict != "no difference detected" or ratio is None:
        return verdict
    reach = max(abs(ratio["low"] - 1.0), abs(ratio["high"] - 1.0))
    around = ratio["low"] <= 1.0 <= ratio["high"]
    if around and max(reach, noise or 0.0) <= SAME_WITHIN:
        return "same"
    return f"not proven (noise ± {max(noise or 0.0, reach if around else 0.0) * 100:.1f} %)"


def gate_counts(gates: Sequence[Mapping[str, Any]]) -> str:
    """How many gates failed and held, in words; a condition is one gate, whatever it was judged on."""
    order = ("failed", "not judged", "passed", "skipped")
    worst: dict[str, str] = {}
    for gate in gates:
        known = worst.setdefault(gate["gate"], gate["status"])
        worst[gate["gate"]] = min(known, gate["status"], key=order.index)
    words = {"failed": "failed", "not judged": "not judged", "skipped": "skipped", "passed": "held"}
    counted = Counter(worst.values())
    return ", ".join(f"{counted[status]} {word}" for status, word in words.items() if counted[status])


def title_of(result: Mapping[str, Any]) -> str:
    """The title, or what was compared."""
    if result.get("title"):
        return clean(result["title"])
    sides = result["cases"][0]["sides"]
    against = " against ".join(clean(side["name"], 60) for side in reversed(sides[:2]))
    return against if len(result["cases"]) == 1 else f"{plural(len(result['cases']), 'model')}: {against}"


def sentences(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The verdict: runtime and sentence. Of one case each comparison, of several what they come to."""
    if len(result["cases"]) == 1:
        for found in comparisons(result):
            yield found.row["runtime"], sentence(found)
    else:
        for summary in summaries(result):
            yield summary.runtime, summary_sentence(summary)


def sentence(found: Comparison) -> str:
    """One comparison in a sentence."""
    row, base = found.row, clean(found.baseline["side"])
    name = clean(row["side"])
    if row is found.baseline:
        if not measured(row):
            return f"Nothing was measured: {clean(row['reason'], 400)}."
        median = seconds_text(row["latency_seconds"]["median"])
        return f"{base} takes {median} (median); there was nothing to compare it with."
    if not measured(row):
        return f"{name} was not measured: {clean(row['reason'], 400)}."
    return _told(row["ratio"], row["verdict"], name, base, found.control["noise_floor"])


def summary_sentence(summary: Summary) -> str:
    """What several models come to, in a sentence."""
    name, base = clean(summary.side), clean(summary.base)
    if summary.overall is None or summary.verdict is None:
        if summary.reason is None:
            return f"There was nothing to compare {base} with."
        what = "Nothing" if summary.side == summary.base else name
        return f"{what} was {'' if what == 'Nothing' else 'not '}measured: {clean(summary.reason, 400)}."
    told = _told(
        summary.overall,
        summary.verdict,
        name,
        base,
        summary.noise_floor,
        mean="the geometric mean over models",
    )
    return f"{told} {summary.counts}.{_spread(summary)}"


def _spread(summary: Summary) -> str:
    """What a mean does not say: the middle one, the range, and the model that it rests on."""
    ratios = sorted(summary.ratios, key=lambda one: one[1])
    if len(ratios) < 2:
        return ""
    (least, low), (most, high) = ratios[0], ratios[-1]
    told = f" Median {summary.middle:.3f}, range {low:.3f} ({clean(least, 60)}) to {high:.3f} ({clean(most, 60)})."
    if summary.rests_on is not None:
        name, without = summary.rests_on
        told += f" The mean rests on {clean(name, 60)}: without it, it is {without:.3f}."
    return told


def _told(
    ratio: Mapping[str, Any],
    verdict: str,
    name: str,
    base: str,
    noise: float | None,
    *,
    mean: str | None = None,
) -> str:
    what = f"{mean}, " if mean else ""
    if verdict == "no difference detected":
        why = ""
        if noise is not None and not ratio["low"] <= 1.0 <= ratio["high"]:
            why = (
                f", which leaves 1 out, but the baseline measured against itself is off by as much: "
                f"the noise is {noise * 100:.1f} %"
            )
        return (
            f"No difference detected between {name} and {base}: time ratio {ratio['median']:.3f}, "
            f"{what}{percent(ratio['confidence'])} interval {ratio['low']:.3f} to {ratio['high']:.3f}{why}."
        )
    gain = [abs(1.0 - value) * 100 for value in (ratio["median"], ratio["low"], ratio["high"])]
    less = "less" if verdict == "faster" else "more"
    low, high = sorted(gain[1:])
    return (
        f"{name} takes {gain[0]:.1f} % {less} time than {base} "
        f"({what}{percent(ratio['confidence'])} interval {low:.1f} to {high:.1f} %)."
    )


def batchnorm_sentence(fold: Mapping[str, Any]) -> str:
    """How many BatchNorms and nodes there were and are."""
    norms, nodes = fold["batchnorm"], fold["nodes"]
    merged = f"{plural(len(fold['merged']), 'further merge')}; " if fold["merged"] else ""
    return (
        f"{norms['before'] - norms['after']} of {plural(norms['before'], 'BatchNorm')} folded, "
        f"{norms['after']} kept; {merged}{nodes['before']:,} nodes became {nodes['after']:,}."
    )


def total_batchnorms(result: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The folds of all cases as one; None if nothing was folded.

    The same model under several conditions counts once.
    """
    folds = list({case["name"]: case["fold"] for case in result["cases"] if case["fold"]}.values())
    if not folds:
        return None
    return {
        key: {when: sum(fold[key][when] for fold in folds) for when in ("before", "after")}
        for key in ("batchnorm", "nodes")
    } | {
        **{key: [entry for fold in folds for entry in fold[key]] for key in ("folded", "kept", "merged")},
        "normalisations": dict(sum((Counter(fold.get("normalisations") or {}) for fold in folds), Counter())),
    }


def fold_groups(fold: Mapping[str, Any]) -> list[tuple[str, int, bool]]:
    """BatchNorms by what became of them: (rule or reason, how many, folded?), folded and frequent first."""
    went = Counter(clean(entry["rule"], 60) for entry in fold["folded"])
    stayed = Counter(clean(entry["reason"], 60) for entry in fold["kept"])
    return [(name, count, True) for name, count in went.most_common()] + [
        (name, count, False) for name, count in stayed.most_common()
    ]


def equality_entries(
    result: Mapping[str, Any], joint: str = ", ", *, references: bool = True
) -> list[tuple[str, Mapping[str, Any]]]:
    """Each comparison of outputs with what was compared where; the model first where there are several."""
    found = []
    for case in result["cases"]:
        start = f"{case_label(result, case)}{joint}" if len(result["cases"]) > 1 else ""
        fold = case.get("fold") or {}
        verify = fold.get("verify") or {}
        if verify.get("outputs"):
            found.append((f"{start}the fold itself ({clean(verify.get('runtime'))})", verify))
        for row in case["rows"]:
            if row["equality"] is not None and (references or not is_reference(row["side"])):
                what = f"{clean(row['side'])} in {clean(row['runtime'])}"
                found.append((f"{start}{what}", row["equality"]))
    return found


def noise_floors(controls: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, list[float]]:
    """The noise floors of each runtime, from the A/A controls by its name."""
    floors: dict[str, list[float]] = {}
    for runtime, control in controls:
        if control["noise_floor"] is not None:
            floors.setdefault(runtime, []).append(control["noise_floor"])
    return floors


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
    told: set[tuple[str, str]] = set()
    several = len(result["cases"]) > 1
    for case in result["cases"]:
        for line in _case_lines(case, case_label(result, case) if several else ""):
            if line not in told:
                told.add(line)
                yield line
    threads = sorted({case["threads"] for case in result["cases"]}, key=lambda count: count or 0)
    yield (
        "Threads",
        _listed("each runtime's default" if count is None else str(count) for count in threads),
    )
    yield "Precision", _listed(sorted({clean(case["precision"], 20) for case in result["cases"]}))
    options = result["options"]
    yield "Seed", str(options["seed"])
    yield "Blocks", f"at least {options['min_blocks']} of {seconds_text(options['block_seconds'])}"
    budget, warm = seconds_text(options["budget_seconds"]), seconds_text(options["warmup_seconds"])
    yield "Budget", f"{budget} a runtime, warm-up up to {warm} a session"
    if any(row["gpu"] for case in result["cases"] for row in case["rows"]):
        yield "L2 cache", clean(options["l2"], 20)


def _case_lines(case: Mapping[str, Any], label: str) -> Iterator[tuple[str, str]]:
    for side in case["sides"]:
        if side["sha256"]:
            yield f"SHA-256 of {clean(side['path'] or side['name'])}", clean(side["sha256"])
    shapes = [
        f"{clean(spec['name'])}: {clean(spec['dtype'], 20)} {shape_text(spec['shape'], '×')}"
        for spec in case["inputs"]
    ]
    if shapes:
        yield (f"Inputs of {label}" if label else "Inputs"), _listed(shapes)


def _listed(items: Sequence[str] | Iterator[str]) -> str:
    return ", ".join(items)
