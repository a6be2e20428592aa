"""Unfused against folded on a GPU: what is measured there, in order of worth, and the page that shows it."""
