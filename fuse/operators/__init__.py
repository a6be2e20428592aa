"""One operator a file: its class, its rule for affine maps, and how ONNX's and PyTorch's calls are read as it."""
