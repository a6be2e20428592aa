"""Two models that are compared: of any kind, one folded, one of another precision."""
