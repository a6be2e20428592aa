"""Many models: steps, each named by what goes into it, in processes of this machine or of a Ray cluster."""
