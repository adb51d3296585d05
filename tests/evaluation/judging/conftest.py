"""Local chat endpoints."""

from tests.endpoint.conftest import serve  # noqa: F401
