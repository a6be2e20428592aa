"""The proof of folds of PyTorch modules, layer by layer."""
