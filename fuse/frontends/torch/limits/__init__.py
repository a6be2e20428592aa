"""Which edits a module's own code does not allow, stated on the view."""
