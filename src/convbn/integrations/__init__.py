"""Adapters that let other pipelines call convbn, a file each; a pipeline's package is imported only with its adapter."""
