"""ONNX models as graphs that are cut into parts, and run as a whole or in part."""
