"""What every test needs of the process it runs in."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    # A shell that starts the tests in the background has SIGINT ignored, and every program that a test
    # starts would inherit that: those that are interrupted on purpose would run on.
    signal.signal(signal.SIGINT, signal.default_int_handler)
