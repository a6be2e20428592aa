"""The measuring protocol: interleaved blocks, an A/A control, verdicts."""
