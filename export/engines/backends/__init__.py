"""TensorRT and TensorRT-RTX: which is installed, and how they differ."""
