"""docs/gpu.md, its picture and the README's sentence, from the results in docs/bench.

    python tools/gpu/page.py                 # from docs/bench/gpu-*.json
    python tools/gpu/page.py --take OUT h100 # first take a folder of measure.py as docs/bench/gpu-h100.json

Without results all three say "not measured".
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from convbn.bench.report.facts import sentences
from convbn.bench.results.read import read_result
from convbn.common.text import bytes_text, seconds_text

ROOT = Path(__file__).resolve().parents[2]
FACTS = "-facts"
#: What the picture and the README speak of: the plainest way to run a model, and the fastest.
MAIN = (("torch-cuda", "fp32", 1), ("torch-cudagraph@channels_last", "fp16", 64))
START, END = "<!-- gpu: written by tools/gpu/page.py -->", "<!-- /gpu -->"
NOT_MEASURED = "Unfused against folded on a GPU: not measured."

Result: TypeAlias = Mapping[str, Any]

HEAD = """\
# On a GPU

Written by `python tools/gpu/page.py` from `docs/bench`. Measured by `make gpu-bench` or, where nothing can be
installed, by `PYTHONPATH=src python tools/gpu/measure.py OUT --seconds 600`: equality first, then paired blocks in
random order with a bootstrap interval and the original against itself (A/A): [benchmarks.md](benchmarks.md).

"""


def main(arguments: list[str] | None = None) -> int:
    """Write all three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--take", nargs=2, metavar=("OUT", "NAME"), help="a folder of measure.py, and what to call it"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="of the repository")
    options = parser.parse_args(arguments)
    docs = options.root / "docs"
    if options.take:
        take(Path(options.take[0]), docs / "bench", options.take[1])
    results = found(docs / "bench")
    (docs / "gpu.md").write_text(page(results), encoding="utf-8")
    drawn, place = picture(results), docs / "img" / "gpu.svg"
    if drawn is None:
        place.unlink(missing_ok=True)
    else:
        place.write_text(drawn, encoding="utf-8")
    readme = options.root / "README.md"
    readme.write_text(with_claim(readme.read_text(encoding="utf-8"), results), encoding="utf-8")
    return 0


def take(out: Path, bench: Path, name: str) -> None:
    """Copy a result and its facts into docs/bench, block times to four digits."""
    value = read_result(out / "gpu.json")
    for case in value["cases"]:
        for row in case["rows"]:
            row["block_seconds"] = [float(f"{seconds:.4g}") for seconds in row["block_seconds"]]
    (bench / f"gpu-{name}.json").write_text(json.dumps(value) + "\n", encoding="utf-8")
    (bench / f"gpu-{name}{FACTS}.json").write_text(
        (out / "facts.json").read_text(encoding="utf-8"), encoding="utf-8"
    )


def found(bench: Path) -> list[tuple[Result, Mapping[str, Any]]]:
    """The committed results with their facts."""
    paths = [path for path in sorted(bench.glob("gpu-*.json")) if not path.stem.endswith(FACTS)]
    facts = [path.with_stem(f"{path.stem}{FACTS}") for path in paths]
    return [
        (read_result(path), json.loads(fact.read_text()) if fact.is_file() else {})
        for path, fact in zip(paths, facts, strict=True)
    ]


def claim(results: Sequence[tuple[Result, Mapping[str, Any]]]) -> str:
    """What the README says."""
    lines = []
    for result, _ in results:
        for runtime, precision, batch in MAIN:
            part = selected(result, runtime, precision, batch)
            told = [sentence for _, sentence in sentences(part) if sentence.startswith("folded takes")]
            if told:
                lines.append(f"* {device(result)}, `{runtime}`, {precision}, batch {batch}: {told[0]}")
    return "\n".join([*lines, "", "All of it: [docs/gpu.md](docs/gpu.md)."]) if lines else NOT_MEASURED


def with_claim(text: str, results: Sequence[tuple[Result, Mapping[str, Any]]]) -> str:
    """The README with the claim between its marks."""
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{START}\n{claim(results)}\n{END}", text)


def selected(result: Result, runtime: str, precision: str, batch: int) -> dict[str, Any]:
    """The result with the rows of one runtime at one precision and batch."""
    cases = [
        {
            **case,
            "rows": [row for row in case["rows"] if row["runtime"] == runtime],
            "runtimes": [one for one in case["runtimes"] if one["runtime"] == runtime],
        }
        for case in result["cases"]
        if (case["precision"], case["batch"]) == (precision, batch)
    ]
    return {**result, "cases": [case for case in cases if case["rows"]]}


def device(result: Result) -> str:
    """The GPU's name."""
    named = (row["gpu"]["device"] for case in result["cases"] for row in case["rows"] if row["gpu"])
    return str(next(named, "CPU (a rehearsal)"))


def page(results: Sequence[tuple[Result, Mapping[str, Any]]]) -> str:
    """The Markdown of docs/gpu.md."""
    if not results:
        return f"{HEAD}Not measured: no GPU was at hand so far.\n"
    parts = [HEAD, claim(results).partition("\n\n")[0], "\n"]
    if picture(results) is not None:
        parts.append("\n![Time of the folded modules over that of the originals](img/gpu.svg)\n")
    for result, facts in results:
        libraries = ", ".join(
            f"{name} {version}" for name, version in result["environment"]["libraries"].items()
        )
        parts.append(f"\n## {device(result)}\n\n{libraries}; {result['created']}.\n")
        parts += [
            *_identity(facts),
            *_table(result),
            *_proof(facts),
            *_kernels(facts),
            *_failed(result, facts),
        ]
    return "".join(parts)


def _identity(facts: Mapping[str, Any]) -> Iterator[str]:
    if "identity_us" in facts:
        yield f"\nA call of `nn.Identity` in eager PyTorch: {facts['identity_us']:.2f} µs of the host.\n"
    if "copy_tb_per_second" in facts:
        yield f"Copies: {facts['copy_tb_per_second']:.2f} TB/s; bfloat16: {facts['bf16_tflops']:.0f} TFLOP/s.\n"


def _table(result: Result) -> Iterator[str]:
    yield "\n| network | batch | precision | runtime | side | median | time ÷ original [95 %] | A/A | result |\n"
    yield "|---|--:|---|---|---|--:|--:|--:|---|\n"
    for case in result["cases"]:
        floors = {one["runtime"]: one["noise_floor"] for one in case["runtimes"]}
        for row in case["rows"]:
            if row["status"] != "measured":
                continue
            ratio, floor = row["ratio"], floors.get(row["runtime"])
            told = f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]" if ratio else ""
            noise = "" if floor is None else f"{floor:.1%}"
            cells = (
                *(case["name"], case["batch"], case["precision"], f"`{row['runtime']}`", row["side"]),
                *(seconds_text(row["latency_seconds"]["median"]), told, noise, row["verdict"]),
            )
            yield f"| {' | '.join(str(cell) for cell in cells)} |\n"


def _proof(facts: Mapping[str, Any]) -> Iterator[str]:
    if not facts.get("proof"):
        return
    yield "\nIn float32, TF32 off, against the original in float64 on the CPU:\n\n"
    yield "| network | side | relative error |\n|---|---|--:|\n"
    for name, rows in facts["proof"].items():
        for side, row in rows.items():
            told = row.get("failed") or f"{row['status']}, {row['relative_error']:.1e}"
            yield f"| {name} | {side} | {told} |\n"


def _kernels(facts: Mapping[str, Any]) -> Iterator[str]:
    if not facts.get("kernels"):
        return
    yield "\nKernels of one inference:\n\n"
    yield "| network | side | kernels | time in them | peak of activations |\n|---|---|--:|--:|--:|\n"
    for name, rows in facts["kernels"].items():
        for side, row in rows.items():
            if "failed" in row:
                yield f"| {name} | {side} | {row['failed']} | | |\n"
                continue
            peak = row["peak_activation_bytes"]
            peak = "" if peak is None else bytes_text(peak)
            yield f"| {name} | {side} | {row['kernels']} | {row['kernel_us']:.0f} µs | {peak} |\n"


def _failed(result: Result, facts: Mapping[str, Any]) -> Iterator[str]:
    """Everything that was a surprise: sides that are slower, rows and stages that failed, peers that refused."""
    lines = []
    for case in result["cases"]:
        for row in case["rows"]:
            where = f"{case['name']}, batch {case['batch']}, {case['precision']}, `{row['runtime']}`, {row['side']}"
            if row["verdict"] == "slower":
                lines.append(f"{where}: slower, {row['ratio']['median']:.3f}")
            if row["status"] != "measured":
                lines.append(f"{where}: not measured: {row['reason']}")
    for name, notes in facts.get("notes", {}).items():
        lines += [f"{name}, {side}: {note}" for side, note in notes.items() if isinstance(note, str)]
    lines += [f"{where}: {text}" for where, text in facts.get("failed", {}).items()]
    if lines:
        yield "\n<details><summary>Slower, failed or not measured</summary>\n\n"
        yield from (f"* {line}\n" for line in dict.fromkeys(lines))
        yield "\n</details>\n"


def picture(results: Sequence[tuple[Result, Mapping[str, Any]]]) -> str | None:
    """Time ratios of the folded module with their intervals, as an SVG; None without any."""
    groups = []
    for result, _ in results:
        for runtime, precision, batch in MAIN:
            rows = [
                (case["name"], row["ratio"])
                for case in selected(result, runtime, precision, batch)["cases"]
                for row in case["rows"]
                if row["side"] == "folded" and row["ratio"]
            ]
            if rows:
                groups.append((f"{device(result)} · {runtime} · {precision} · batch {batch}", rows))
    if not groups:
        return None
    ends = [ratio[key] for _, rows in groups for _, ratio in rows for key in ("low", "high")]
    low, high = min(*ends, 0.9) - 0.02, max(*ends, 1.02) + 0.02

    def at(value: float) -> float:
        return 170 + 520 * (value - low) / (high - low)

    body, y = [], 10
    for title, rows in groups:
        body.append(f'<text x="10" y="{y + 14}" class="title">{title}</text>')
        top, y = y + 22, y + 26
        for name, ratio in rows:
            kind = "fast" if ratio["high"] < 1 else "slow" if ratio["low"] > 1 else "same"
            a, m, b = (at(ratio[key]) for key in ("low", "median", "high"))
            body.append(f'<text x="160" y="{y + 9}" text-anchor="end">{name}</text>')
            body.append(
                f'<g class="{kind}"><path d="M{a:.1f} {y + 5}H{b:.1f}"/>'
                f'<circle cx="{m:.1f}" cy="{y + 5}" r="3.5"/></g>'
            )
            body.append(f'<text x="700" y="{y + 9}">{ratio["median"]:.3f}</text>')
            y += 18
        body.append(f'<path class="one" d="M{at(1.0):.1f} {top}V{y}"/>')
        y += 14
    style = (
        "text{font:11px system-ui,sans-serif;fill:#444}.title{font-weight:600}.one{stroke:#888;stroke-dasharray:3 3}"
        "g path{stroke-width:3}.fast *{stroke:#0a7d4f;fill:#0a7d4f}.slow *{stroke:#b3261e;fill:#b3261e}"
        ".same *{stroke:#777;fill:#777}@media(prefers-color-scheme:dark){text{fill:#ccc}}"
    )
    label = "Time of the folded module over the original, 95 % intervals; left of the line is faster"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 750 {y}" role="img" aria-label="{label}">'
        f"<style>{style}</style>{''.join(body)}</svg>\n"
    )


if __name__ == "__main__":
    sys.exit(main())
