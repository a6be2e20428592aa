"""A module's forward as a graph of calls, where it cannot be exported."""
