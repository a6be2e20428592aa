"""What the package looks like as a whole: who imports whom, how long files are, which way a model takes."""
