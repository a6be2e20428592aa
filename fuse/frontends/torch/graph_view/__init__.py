"""A recorded graph of calls as a dataflow view."""
