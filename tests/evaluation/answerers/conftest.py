"""A real tools service and local chat endpoints."""

from tests.endpoint.conftest import serve  # noqa: F401
from tests.rollout.conftest import client, service  # noqa: F401
