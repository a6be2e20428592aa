"""The two frontends: each offers the dataflow view of a model and applies a plan's edits."""
