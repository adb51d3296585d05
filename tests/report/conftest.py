"""Fixtures of scored trajectories of every form."""

from tests.example_trajectories import codec, make, parts, tokenizer, trajectories  # noqa: F401
