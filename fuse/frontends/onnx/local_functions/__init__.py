"""Model-local functions, written out where a BatchNorm stands in or beside them."""
