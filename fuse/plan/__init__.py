"""From a view to a plan: folds, refusals with reasons, edits, and the report that says so."""
