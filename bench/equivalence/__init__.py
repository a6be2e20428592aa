"""Whether two models compute the same, and how far apart they are."""
