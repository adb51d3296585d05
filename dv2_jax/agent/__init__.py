"""The agent loop without its engine: parse a turn, render an observation, splice ids, count budgets.

Pure functions and one accumulator; no JAX, no network, no files but a prompt file that the config names.
"""
