"""Computed weights made parameters, on the copy of a module that is folded."""
