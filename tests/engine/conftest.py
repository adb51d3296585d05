"""Builds the small model of the engine tests once per session."""

from __future__ import annotations

import pytest

from tests.engine.small_world import World, make_world


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()
