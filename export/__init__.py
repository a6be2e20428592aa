"""Checkpoints, artefact files, precision and TensorRT engines.

What comes in from disk and what goes out to it passes through this room; it knows nothing of the
algebra (:mod:`convbn.fuse`) and measures nothing: :mod:`convbn.bench` does, with the engine runner from here.
"""

if __name__ != "convbn.export":
    raise ImportError(f"this folder is the package convbn.export, not {__name__}: import convbn.export")
