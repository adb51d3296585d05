"""The agent loop without its engine: parses turns, renders observations, encodes prompts and enforces budgets.

Pure functions and one stateful `TrajectoryBuilder`. No JAX, no network, and no file access except for a system
prompt that the configuration names.
"""
