"""Who does steps, in which order: processes of this machine, or a Ray cluster."""
