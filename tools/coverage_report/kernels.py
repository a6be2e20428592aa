"""Kernels that a runtime executes: the untouched file against convbn's output, without a clock.

``python tools/coverage_report/kernels.py FILE_OR_FOLDER … [--runtime openvino] [--json OUT]`` folds every ONNX file and
counts what onnxruntime (the graph that it saves after all its optimisations) or OpenVINO (its runtime model) makes of
both. A fold that makes a runtime execute more kernels, or that breaks up a kernel that the runtime had made of several
operators, is a fault whatever a clock says; the exit code is 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.extend(str(Path(__file__).resolve().parents[2] / folder) for folder in ("tools", "tests"))

from support.kernels import COUNTERS

__all__ = ["FUSED", "Change", "main"]

FUSED = frozenset(
    {
        *("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "HardSwish", "HSwish", "Mish", "Swish"),
        *("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization", "RMS"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization"),
        *("GroupNormalization", "InstanceNormalization", "MVN", "NormalizeL2", "LpNormalization"),
        *("Attention", "MultiHeadAttention", "ScaledDotProductAttention"),
        *("Gemm", "FusedMatMul", "FusedGemm", "FullyConnected", "BiasSoftmax"),
        *("QLinearConv", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    }
)
"""Kernels that stand for several operators, by the names that the runtimes give them."""

LAYERS = ("Conv", "BatchNormalization", "MatMul", "Gemm", "FusedMatMul", "Gelu", "FastGelu")
"""What may take the place of a fused kernel that does more: a layer without its sum, a GELU without its bias."""

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""These compute nothing: their output is the memory of their input."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a fold did to the kernels of one file.

    Attributes:
        before, after: executed kernels by kind.
    """

    before: Mapping[str, int]
    after: Mapping[str, int]

    @property
    def totals(self) -> tuple[int, int]:
        """Kernels that compute something, before and after."""
        before, after = (
            sum(count for kind, count in kinds.items() if kind not in VIEWS)
            for kinds in (self.before, self.after)
        )
        return before, after

    @property
    def lost(self) -> dict[str, int]:
        """Fused kernels of which there are fewer; of what convolutions do on their way, what fewer of them do."""
        return _more(_fusions(self.after), _fusions(self.before))

    @property
    def alone(self) -> dict[str, int]:
        """Operators of which more run as kernels of their own."""
        more = _more(self.before, self.after)
        return {kind: n for kind, n in more.items() if kind.split("+")[0] not in LAYERS and kind not in VIEWS}

    @property
    def is_fault(self) -> bool:
        """Whether there are more kernels, or fused ones were broken up."""
        before, after = self.totals
        return after > before or bool(self.lost and self.alone)


def _fusions(kinds: Mapping[str, int]) -> Counter[str]:
    found: Counter[str] = Counter()
    for kind, count in kinds.items():
        layer, *extras = kind.split("+")
        if layer in FUSED:
            found[layer] += count
        if (
            layer != "BatchNormalization"
        ):  # the sum or ReLU behind one that is gone is left as a kernel of its own
            for extra in extras:
                found[f"+{extra}"] += count
    return found


def _more(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    counts = {kind: count - before.get(kind, 0) for kind, count in sorted(after.items())}
    return {kind: count for kind, count in counts.items() if count > 0}


def main(arguments: list[str]) -> int:
    """Count for every file; 1 if a fold is a fault."""
    import onnx

    import convbn

    options = _parser().parse_args(arguments)
    count, rows, faults = COUNTERS[options.runtime], {}, 0
    for path in _files(options.models):
        folded, _ = convbn.fuse(path, options=convbn.FuseOptions(verify=False))
        change = Change(count(onnx.load(path)), count(folded))
        faults += change.is_fault
        rows[path.stem] = {
            "before": dict(change.before),
            "after": dict(change.after),
            "fault": change.is_fault,
        }
        counts, word = "{} -> {}".format(*change.totals), "FAULT" if change.is_fault else "ok"
        print(f"{path.stem}: {counts} {word}, fewer {change.lost}, alone {change.alone}", flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{len(rows)} files, {faults} with more kernels or fewer fused ones")
    return 1 if faults else 0


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(path.glob("*.onnx")) if path.is_dir() else [path]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", help="ONNX files, or folders of them")
    parser.add_argument("--runtime", choices=sorted(COUNTERS), default="onnxruntime")
    parser.add_argument("--json", type=Path, help="write the counts of every file")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
