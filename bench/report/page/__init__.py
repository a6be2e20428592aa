"""The HTML pages: one file each, offline, no script; elements, drawings, sections, stylesheet."""
