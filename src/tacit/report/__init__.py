"""The report of a private run: plots, the privacy statement and a page. It takes numbers, never an engine."""
