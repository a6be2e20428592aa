"""Results of a benchmark: read, written, compared, in words."""
