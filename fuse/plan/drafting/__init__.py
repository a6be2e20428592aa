"""What an attempt notes of its edits, and how it sees parts of one value."""
