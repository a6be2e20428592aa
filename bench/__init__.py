"""Verification and measurement: runtimes, equality, protocol, statistics and reports.

The package is also the function of the same name: ``convbn.bench(model)`` calls :func:`convbn.api.bench`
(docs/decisions/0002-callable-rooms.md).
"""

if __name__ != "convbn.bench":
    raise ImportError(f"this folder is the package convbn.bench, not {__name__}: import convbn.bench")
