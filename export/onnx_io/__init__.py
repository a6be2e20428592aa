"""ONNX files: read, checked, and written with their external data."""
