"""The PyTorch frontend, through the module and its captured graph."""
