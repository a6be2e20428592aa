"""What every room needs: text for people, JSON, tables, number types, how far something is, the version."""

__version__ = "0.1.0"
