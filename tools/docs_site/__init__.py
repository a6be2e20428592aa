"""The static site: the documents of the repository, an API reference from its docstrings, a gallery of reports."""
