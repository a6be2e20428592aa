"""From a plan in a file to the steps that have to be done, and why."""
