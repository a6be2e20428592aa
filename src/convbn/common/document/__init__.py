"""Reports as documents: built once from facts, then laid out for a terminal, as Markdown, or as an HTML page."""
