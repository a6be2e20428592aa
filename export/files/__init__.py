"""Files: written whole or not at all, kept inside their folder, recognised by content."""
