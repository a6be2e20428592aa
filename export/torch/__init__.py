"""Files that PyTorch writes: ONNX, exported programs, state dicts."""
