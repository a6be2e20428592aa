"""Adapters that let other pipelines call convbn, a file each; each imports its pipeline's package, and only then."""
