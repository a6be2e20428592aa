"""Lower precisions: which nodes may compute in them, the casts, the calibration, the quantisation."""
