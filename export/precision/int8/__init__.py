"""Quantisation to int8: calibration data, ranges, and the quantised graph."""
