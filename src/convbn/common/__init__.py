"""What every room needs: text for people, JSON, tables, number types, progress, the version."""

__version__ = "0.2.0"
