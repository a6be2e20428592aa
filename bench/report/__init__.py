"""One measured result, rendered: terminal table, Markdown, one offline HTML page."""
