"""Fixtures with example trajectories."""

from tests.example_trajectories import make, parts, prompt_encoder, tokenizer, trajectories  # noqa: F401
