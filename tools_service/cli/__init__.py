"""Command lines beside the service: a session by hand, search indexes, recorded answers."""
