"""The ONNX frontend, through onnx-graphsurgeon."""
