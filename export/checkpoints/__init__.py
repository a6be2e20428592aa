"""Checkpoint files: read safely, unpacked, and matched with an architecture."""
