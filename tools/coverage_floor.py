"""Lines and branches of ``fuse/`` that the tests reached, each against its floor.

python tools/coverage_floor.py build/coverage.json

coverage's own ``--fail-under`` judges the two in one sum, where many lines hide few branches.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FLOOR = 95.0


def main() -> int:
    """Print both and the files that lack most; 1 below the floor."""
    found = json.loads(Path(sys.argv[1]).read_text())
    totals = found["totals"]
    files = sorted(found["files"].items(), key=lambda item: -item[1]["summary"]["missing_branches"])
    for name, file in files[:10]:
        if missing := file["summary"]["missing_branches"]:
            print(f"{name}: {missing} branches, first {file['missing_branches'][0]}")
    kinds = (
        ("lines", totals["covered_lines"], totals["num_statements"]),
        ("branches", totals["covered_branches"], totals["num_branches"]),
    )
    for kind, reached, there in kinds:
        print(f"{kind}: {reached:,} of {there:,}, {100 * reached / there:.1f} %")
    return int(any(100 * reached < FLOOR * there for _, reached, there in kinds))


if __name__ == "__main__":
    sys.exit(main())
