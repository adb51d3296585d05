"""Fixtures with a very small model and synthetic examples."""

from tests.trainer.small_model import examples, spec, tiny  # noqa: F401
