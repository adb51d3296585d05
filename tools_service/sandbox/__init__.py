"""Confined Python processes: the manager, the zygote, and what runs inside a session."""
