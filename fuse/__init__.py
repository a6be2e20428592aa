"""BatchNorm folding: dataflow view, operators and their rules, planner, ONNX and PyTorch frontends.

The package is also the function of the same name: ``convbn.fuse(model)`` calls :func:`convbn.api.fuse`
(docs/decisions/0002-callable-rooms.md).
"""

if __name__ != "convbn.fuse":
    raise ImportError(f"this folder is the package convbn.fuse, not {__name__}: import convbn.fuse")
