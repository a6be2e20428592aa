"""The ONNX frontend: a ModelProto is read and written as it is."""
