"""Cross-layer equalisation: exact moves of scales and shifts that make channels easier to quantise."""
