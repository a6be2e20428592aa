"""Packages: files that one runtime loads as they are, made of a folded model and compared before they are kept."""
