"""The tour's figures and tables from what was measured: ``write.py TOUR.json DOCS`` (``make tour``).

Tables stand between ``<!-- tour: NAME -->`` and ``<!-- /tour -->`` in ``DOCS/tour.md`` and ``DOCS/tour.zh-CN.md``; the
numbers are the same in both.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["PAGES", "filled", "tables"]

PAGES = ("tour.md", "tour.zh-CN.md")
_CHINESE = {
    "network": "网络",
    "layers": "层数",
    "first / last gradient": "首层 / 末层梯度",
    "loss": "损失",
    "learning rate": "学习率",
    "without BatchNorm": "无 BatchNorm",
    "with BatchNorm": "有 BatchNorm",
    "normalisation": "归一化",
    "batch": "批大小",
    "test accuracy": "测试准确率",
    "change by the neighbours": "同批其他样本引起的变化",
    "whole": "完整网络",
    "one layer removed: median": "移除一层：中位数",
    "best": "最好",
    "worst": "最差",
    "model": "模型",
    "BatchNorms": "BatchNorm 数",
    "time": "时间",
    "folded / original": "折叠后 / 原始",
    "original": "原始",
    "folded": "折叠后",
    "plain": "普通",
    "plain + BatchNorm": "普通 + BatchNorm",
    "residual + BatchNorm": "残差 + BatchNorm",
    "residual": "残差",
    "plain (VGG)": "普通（VGG）",
    "runtime": "运行时",
    "not measured": "未测量",
}


def tables(found: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """The cells of every table, by its name; the first row is the header."""
    gradients = [["network", "layers", "first / last gradient", "loss"]]
    gradients += [
        [r["kind"], str(r["depth"]), f"{r['share']:.2g}", f"{r['loss']:.2f}"] for r in found["gradients"]
    ]
    rates = [["learning rate", "without BatchNorm", "with BatchNorm"]]
    rates += [
        [f"{r['rate']:g}", f"{r['without']:.1%}", f"{r['with']:.1%}"] for r in found["batchnorm"]["rates"]
    ]
    norms = [["normalisation", "batch", "test accuracy", "change by the neighbours"]]
    norms += [
        [r["norm"], str(r["batch"]), f"{r['accuracy']:.1%}", f"{r['neighbours']:.0%}"]
        for r in found["layernorm"]
    ]
    ensemble = [["network", "whole", "one layer removed: median", "best", "worst"]]
    for row in found["ensemble"]:
        scores = sorted(row["without"])
        middle = (scores[len(scores) // 2] + scores[(len(scores) - 1) // 2]) / 2
        cells = (row["whole"], middle, scores[-1], scores[0])
        ensemble.append([row["kind"], *(f"{score:.1%}" for score in cells)])
    folding = found["folding"]
    before, after = folding["batchnorms"]
    models = [["model", "BatchNorms", "test accuracy"]]
    models += [["original", str(before), f"{folding['accuracy'][0]:.2%}"]]
    models += [["folded", str(after), f"{folding['accuracy'][1]:.2%}"]]
    times = [["runtime", "folded / original"]]
    times += [[f"`{row['runtime']}`", row["ratio"]] for row in folding["times"]]
    return {
        "gradients": gradients,
        "batchnorm": rates,
        "layernorm": norms,
        "ensemble": ensemble,
        "folding": models,
        "times": times,
    }


def filled(page: str, found: Mapping[str, Any], *, chinese: bool) -> str:
    """The page with its tables written anew."""
    for name, rows in tables(found).items():
        cells = [[_CHINESE.get(cell, cell) for cell in row] if chinese else row for row in rows]
        lines = ["| " + " | ".join(row) + " |" for row in cells]
        lines.insert(1, "|---" + "|---:" * (len(cells[0]) - 1) + "|")
        mark = f"<!-- tour: {name} -->"
        block = re.compile(re.escape(mark) + r"\n.*?<!-- /tour -->", re.DOTALL)
        if not block.search(page):
            raise SystemExit(f"the page has no {mark}")
        # Held as text: a backslash in it would mean something in a replacement.
        before, _, after = page.partition(block.search(page)[0])
        page = before + mark + "\n\n" + "\n".join(lines) + "\n\n<!-- /tour -->" + after
    return page


def _figures(found: Mapping[str, Any]) -> dict[str, Callable[[Any], None]]:
    def gradients(axes: Any) -> None:
        for kind in dict.fromkeys(row["kind"] for row in found["gradients"]):
            rows = [row for row in found["gradients"] if row["kind"] == kind]
            axes.plot([r["depth"] for r in rows], [r["share"] for r in rows], marker="o", label=kind)
        axes.set(
            xscale="log", yscale="log", xlabel="layers", ylabel="gradient of the first layer / of the last"
        )
        axes.set_xticks([r["depth"] for r in rows], [str(r["depth"]) for r in rows])
        axes.minorticks_off()
        axes.legend()

    def batchnorm(axes: Any) -> None:
        rows = found["batchnorm"]["rates"]
        for name in ("without", "with"):
            axes.plot(
                [r["rate"] for r in rows],
                [100 * r[name] for r in rows],
                marker="o",
                label=f"{name} BatchNorm",
            )
        axes.set(xscale="log", xlabel="learning rate", ylabel="test accuracy in %", ylim=(0, 100))
        axes.legend()

    def layernorm(axes: Any) -> None:
        for norm in ("LayerNorm", "BatchNorm"):
            rows = [row for row in found["layernorm"] if row["norm"] == norm]
            axes.plot([r["batch"] for r in rows], [100 * r["accuracy"] for r in rows], marker="o", label=norm)
        axes.set(xscale="log", xlabel="batch size in training", ylabel="test accuracy in %", ylim=(0, 100))
        axes.set_xticks([r["batch"] for r in rows], [str(r["batch"]) for r in rows])
        axes.minorticks_off()
        axes.legend()

    def ensemble(axes: Any) -> None:
        for row in found["ensemble"]:
            places = range(1, len(row["without"]) + 1)
            (line,) = axes.plot(places, [100 * s for s in row["without"]], marker="o", label=row["kind"])
            axes.axhline(100 * row["whole"], color=line.get_color(), linewidth=0.8, linestyle=":")
        axes.set(xlabel="removed layer", ylabel="test accuracy in %", ylim=(0, 100))
        axes.legend()

    return {"gradients": gradients, "batchnorm": batchnorm, "layernorm": layernorm, "ensemble": ensemble}


def main(source: Path, docs: Path) -> None:
    """Write tables and figures."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "tour", "font.size": 10, "axes.grid": True, "grid.alpha": 0.3}
    )
    from matplotlib import pyplot

    found = json.loads(source.read_text(encoding="utf-8"))
    for name, draw in _figures(found).items():
        figure, axes = pyplot.subplots(figsize=(6.4, 3.4), layout="constrained")
        draw(axes)
        figure.savefig(docs / "img" / f"tour-{name}.svg", metadata={"Date": None})
        pyplot.close(figure)
    for page in PAGES:
        path = docs / page
        path.write_text(
            filled(path.read_text(encoding="utf-8"), found, chinese=page.endswith("zh-CN.md")),
            encoding="utf-8",
        )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
