"""Runtimes by name: each a small adapter that is imported only when it is asked for."""
