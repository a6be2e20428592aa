"""What an ONNX model is made of: graphs, tensors, attributes; and the model without its weights."""
