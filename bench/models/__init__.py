"""What a model is fed with: inputs drawn for it, and how they are given."""
