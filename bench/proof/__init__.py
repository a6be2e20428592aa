"""The local proof: every folded part of an ONNX model, run on the original's own values."""
