"""Options of the command line: groups of arguments, and what they mean as values."""
