"""Everything that runs inside a session: the zygote, the session process and the cell loop."""
