"""Lines of code by folder: those that are neither blank, comment nor docstring.

python tools/structure/count_lines.py [--files] [FOLDER ...]

Without folders, the product: fuse/, export/, bench/ and src/convbn/.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("fuse", "export", "bench", "src/convbn")
NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
    tokenize.ENCODING,
}


def code_lines(text: str) -> int:
    """The lines of a module that hold code; a string that stands alone as a statement is a docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def counted(folder: Path) -> dict[Path, int]:
    """Each module below a folder with its lines of code; links to other folders are not followed."""
    found: dict[Path, int] = {}
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            continue
        if path.is_dir():
            found |= counted(path)
        elif path.suffix == ".py":
            found[path] = code_lines(path.read_text(encoding="utf-8"))
    return found


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[ROOT / name for name in PRODUCT])
    parser.add_argument("--files", action="store_true", help="a line for each file, the longest first")
    options = parser.parse_args()
    files = {path: lines for folder in options.folders for path, lines in counted(folder.resolve()).items()}
    totals: Counter[str] = Counter()
    for path, lines in files.items():
        inside = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        totals[str(inside if options.files else inside.parent)] += lines
    rows = totals.most_common() if options.files else sorted(totals.items())
    for name, lines in [*rows, ("total", sum(totals.values()))]:
        print(f"{lines:7,}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
