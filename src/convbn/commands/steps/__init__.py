"""What several verbs do alike, and the long steps of single ones."""
