"""TensorRT engines: backends, building, running."""
