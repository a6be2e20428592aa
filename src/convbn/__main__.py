"""``python -m convbn`` and the ``convbn`` command."""

from __future__ import annotations

import os
import signal
import sys


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        return _run()
    except KeyboardInterrupt:
        # In the first moment, while Python loads the command line, which catches it from then on.
        sys.stderr.write("convbn: interrupted\n")
        return 130


def _run() -> int:
    from convbn.cli import main as run

    # Or onnxruntime would write an identifier and an event queue into the user's home.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # By default it ends the process on the spot, and leaves the temporary files of what is being written.
    signal.signal(signal.SIGTERM, _terminated)
    return run(sys.argv[1:])


def _terminated(number: int, _: object) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    if not sys.flags.safe_path:
        # Where `python -m` puts the current folder: nothing is imported from there unless --allow-cwd says so.
        del sys.path[0]
    sys.exit(main())
