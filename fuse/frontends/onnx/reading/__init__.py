"""An ONNX model as a dataflow view."""
