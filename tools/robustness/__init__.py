"""Broken and random models, and what convbn does with them: generators, fuzzers and the report."""
