"""Operator calls of PyTorch, in the view's vocabulary."""
