"""The verbs of the command line and their arguments; what an argument means stands once, in its group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from convbn.commands.options.engine import add_engine_arguments
from convbn.commands.options.many import add_many_arguments, add_run_arguments
from convbn.commands.options.measuring import add_measuring_arguments
from convbn.commands.options.parsing import Parser, number, whole
from convbn.commands.options.precision import add_precision_arguments
from convbn.commands.options.report import (
    add_compare_arguments,
    add_history_arguments,
    add_report_arguments,
    add_stored_report_arguments,
)
from convbn.export.precision.precisions import PRECISIONS

__all__ = ["VERBS", "Verb"]

Group: TypeAlias = Callable[[Parser], None]

_ARCH_HELP = "of a checkpoint: torchvision:NAME, timm:NAME, hf-hub:ORG/NAME or package.module:callable"


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb.

    Attributes:
        summary: what it does, a line.
        groups: add its arguments to a parser, in the order in which help lists them.
    """

    summary: str
    groups: tuple[Group, ...]


def _common(parser: Parser) -> None:
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")


def _source(parser: Parser) -> None:
    parser.add_argument("--arch", metavar="SPEC", help=_ARCH_HELP)
    parser.add_argument(
        "--arch-arg", metavar="K=V", action="append", default=[], help="argument of the architecture"
    )
    parser.add_argument(
        "--input-shape",
        metavar="NAME:DIMS",
        action="append",
        default=[],
        help="x:1x3x224x224, for checkpoints and open dimensions",
    )
    parser.add_argument(
        "--inputs",
        metavar="PATH",
        help="inputs to use: .npz, .npy, or a folder of them",
    )
    parser.add_argument(
        "--allow-cwd", action="store_true", help="let --arch be imported from the current folder"
    )
    parser.add_argument("--checkpoint-key", metavar="KEY", help="where in a checkpoint the weights lie")
    parser.add_argument("--strip-prefix", metavar="P", help="take P away from the names in a checkpoint")
    parser.add_argument(
        "--drop-unexpected", action="store_true", help="leave out weights that the architecture lacks"
    )
    parser.add_argument(
        "--trust-checkpoint", action="store_true", help="run the code in a pickle, .pt2 or TorchScript file"
    )
    parser.add_argument(
        "--max-pickle-mib",
        type=whole(1),
        default=8,
        metavar="N",
        help="largest pickle to look at (default 8)",
    )
    parser.add_argument(
        "--max-unpacked-mib",
        type=whole(1),
        default=256,
        metavar="N",
        help="how much an archive may grow by (default 256)",
    )
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="of random inputs (default 0)")


def _rules(parser: Parser) -> None:
    parser.add_argument(
        "--only", metavar="RULE", action="append", default=[], help="use this rule and no other"
    )
    parser.add_argument("--skip", metavar="RULE", action="append", default=[], help="do not use this rule")
    parser.add_argument("--freeze", action="store_true", help="make constants of inputs that have a value")
    parser.add_argument("--strict", action="store_true", help="fail where there would only be a warning")


def _materialize(parser: Parser) -> None:
    parser.add_argument(
        "--materialize", action="store_true", help="make parameters of weights that a module computes"
    )


def _target(parser: Parser) -> None:
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="file to write")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.add_argument("--no-verify", action="store_true", help="write without comparing outputs first")


def _json(parser: Parser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON; - for stdout")


def _inspect(parser: Parser) -> None:
    parser.add_argument(
        "input", metavar="IN", help="ONNX file, .pt2, checkpoint with --arch, engine, or a folder of models"
    )
    add_many_arguments(parser)
    parser.add_argument("--all", action="store_true", help="list every fold, and not the first twenty")
    parser.add_argument(
        "--trust-engine", action="store_true", help="load an engine to list its layers, which runs its code"
    )


def _fuse(parser: Parser) -> None:
    parser.add_argument("input", metavar="IN", help="ONNX file, .pt2, or checkpoint with --arch")
    add_many_arguments(parser, writes=True)
    parser.add_argument(
        "--external-data",
        choices=("auto", "always", "never"),
        default="auto",
        help="weights in a file of their own beside OUT; auto: as IN has them, and beyond 2 GiB",
    )


def _verify(parser: Parser) -> None:
    parser.add_argument("reference", metavar="A")
    parser.add_argument("candidate", metavar="B")
    parser.add_argument(
        "--precision",
        choices=tuple(PRECISIONS),
        help="of B: allow the error that this precision brings (docs/precision.md)",
    )
    parser.add_argument("--calibration", metavar="PATH", help="inputs to use, as convbn export takes them")
    parser.add_argument("--preprocess", metavar="SPEC", help="of images there (docs/precision.md)")
    parser.add_argument(
        "--layers", action="store_true", help="name the first value that differs, and list those that do"
    )
    parser.add_argument(
        "--tolerance", type=number(0), metavar="X", help="allow a relative error of X instead"
    )
    parser.add_argument(
        "--trust-engine", action="store_true", help="run an engine given, which runs its code"
    )
    parser.add_argument("--runtime", metavar="NAME", help="run both in this one (docs/benchmarks.md)")
    add_many_arguments(parser, more=False)


def _export(parser: Parser) -> None:
    parser.add_argument("input", metavar="IN", help="ONNX file, .pt2, or checkpoint with --arch")
    add_many_arguments(parser, writes=True)
    parser.add_argument("--no-fuse", action="store_true", help="export the model as it is")
    parser.add_argument(
        "--backend", choices=("auto", "tensorrt", "tensorrt-rtx"), default="auto", help="what builds it"
    )
    parser.add_argument("--no-tf32", action="store_true", help="keep TensorFloat-32 out of FP32 layers")
    parser.add_argument("--opset", type=whole(1), metavar="N", help="version of ONNX's default operator set")
    parser.add_argument(
        "--dynamic-batch", action="store_true", help="leave dimension 0 of a checkpoint's inputs free"
    )
    parser.add_argument("--triton", metavar="DIR", help="also put OUT into a Triton model repository")
    add_engine_arguments(parser)
    add_precision_arguments(parser)


def _refit(parser: Parser) -> None:
    parser.add_argument("input", metavar="IN", help="folded ONNX file, or engine built with --refit")
    parser.add_argument(
        "--from", dest="new", metavar="NEW", required=True, help="checkpoint or ONNX file, unfolded"
    )
    parser.add_argument("--onnx", metavar="FILE", help="of an engine: also write the new folded ONNX file")
    parser.add_argument("--trust-engine", action="store_true", help="load the engine, which runs its code")


def _bench(parser: Parser) -> None:
    parser.add_argument("input", metavar="IN", help="ONNX file, .pt2, or checkpoint with --arch")
    parser.add_argument("others", metavar="OTHER", nargs="*", help="files to measure against IN")
    parser.add_argument(
        "--trust-engine", action="store_true", help="run the engines given, which runs their code"
    )
    add_measuring_arguments(parser)
    add_report_arguments(parser)


VERBS: Mapping[str, Verb] = {
    "inspect": Verb(
        "say what a fold would do, and why each remaining BatchNorm stays",
        (_source, _rules, _json, _common, _inspect, _materialize),
    ),
    "fuse": Verb(
        "fold a model and write it, if its outputs are equal",
        (_source, _rules, _target, _json, _common, _fuse, _materialize),
    ),
    "verify": Verb("compare two models on the same random inputs", (_source, _json, _common, _verify)),
    "export": Verb(
        "fold a model and write an engine, an ONNX file, a program or a package of it",
        (_source, _rules, _target, _json, _common, _export),
    ),
    "refit": Verb(
        "put new weights into a folded model or an engine", (_source, _rules, _target, _json, _common, _refit)
    ),
    "bench": Verb(
        "measure the original against the folded model, or against OTHER", (_source, _json, _common, _bench)
    ),
    "report": Verb(
        "reports and gates from a stored result of bench", (_json, _common, add_stored_report_arguments)
    ),
    "compare": Verb(
        "what changed between two stored results of bench", (_json, _common, add_compare_arguments)
    ),
    "history": Verb("a page of all results in a folder", (_common, add_history_arguments)),
    "run": Verb(
        "do what a plan of many models says and is not done yet", (_json, _common, add_run_arguments)
    ),
    "doctor": Verb("say which optional parts are present, and how to get the others", (_json, _common)),
}
"""By name, in the order of the help."""
