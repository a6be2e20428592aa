"""The proof held against real architectures: no right fold refused, none that is off by 1 % accepted."""
