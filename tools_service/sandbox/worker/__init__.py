"""Runs inside the sandbox: the zygote, the session process and its cell loop."""
