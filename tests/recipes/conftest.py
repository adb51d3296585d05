"""Fixtures of a very small model."""

from tests.trainer.small_model import examples, spec, tiny  # noqa: F401
