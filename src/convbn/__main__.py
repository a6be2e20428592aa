"""``python -m convbn`` and the ``convbn`` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line and return its exit code."""
    from convbn.cli import main as run

    return run(sys.argv[1:])


if __name__ == "__main__":
    if not sys.flags.safe_path:
        # Where `python -m` puts the current folder: nothing is imported from there unless --allow-cwd says so.
        del sys.path[0]
    sys.exit(main())
