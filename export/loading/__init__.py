"""From a path, or a model in memory, to a model that can be folded, run and measured."""
