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
    sys.unraisablehook = _asked_again
    return run(sys.argv[1:])


def _terminated(number: int, _: object) -> None:
    sys.exit(128 + number)


def _asked_again(lost: sys.UnraisableHookArgs) -> None:
    """Send a signal again that arrived in a callback of Python's own, as imports have them: it would be lost."""
    if not issubclass(lost.exc_type, SystemExit | KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    from threading import Timer

    number = signal.SIGTERM if issubclass(lost.exc_type, SystemExit) else signal.SIGINT
    timer = Timer(0.05, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    if not sys.flags.safe_path:
        # Where `python -m` puts the current folder: nothing is imported from there unless --allow-cwd says so.
        del sys.path[0]
    sys.exit(main())
