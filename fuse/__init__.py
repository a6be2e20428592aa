"""The fold algebra: dataflow view, rules, plan and the two frontends that offer and edit it.

The package is also the function of the same name: ``convbn.fuse(model)`` calls :func:`convbn.api.fuse`
(docs/decisions/0002-callable-rooms.md).
"""

if __name__ != "convbn.fuse":
    raise ImportError(f"this folder is the package convbn.fuse, not {__name__}: import convbn.fuse")
