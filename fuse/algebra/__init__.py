"""Affine maps and the one rounding they end in; NumPy and float64 only."""
