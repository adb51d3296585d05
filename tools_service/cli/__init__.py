"""Command-line tools: an interactive session, search indexes, recorded search answers."""
