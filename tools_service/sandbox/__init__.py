"""Runs untrusted Python in confined processes: manager, zygote, session processes and their protocol."""
