"""A capacity report as a page, as Markdown, as JSON and as CSV."""
