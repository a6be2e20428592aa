"""TensorRT engines: one function over the backends that are installed."""
