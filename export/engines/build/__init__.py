"""Building an engine: network, configuration, profiles, progress."""
