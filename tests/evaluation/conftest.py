"""Fixtures with example trajectories, and local chat endpoints."""

from tests.endpoint.conftest import serve  # noqa: F401
from tests.example_trajectories import make, parts, prompt_encoder, tokenizer, trajectories  # noqa: F401
