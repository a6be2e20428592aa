"""What there is to know of a module before it runs: its layers, its copies, its BatchNorms."""
