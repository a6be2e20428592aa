"""Modules and exported programs, captured as a dataflow view."""
