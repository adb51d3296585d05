"""Difficulty filters and trajectory synthesis: where training data comes from."""
