"""The edits of a plan, made on a module or on an exported program."""
