"""One rule a file: how a linear layer takes an affine map into its own parameters."""
