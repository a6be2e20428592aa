"""The dataflow view: what the rules see of a model, whichever framework it came from."""
