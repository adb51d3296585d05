"""Data construction: raw questions become verified sets for the cold start and for RL."""
