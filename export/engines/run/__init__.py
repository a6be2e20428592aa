"""Loading, inspecting and running an engine."""
