"""Provides the default run's prompt encoder, and one tools service with the default index for the teacher's tests."""

from __future__ import annotations

import pytest

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.config import Config
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.rollout.tools_client import open_tools


@pytest.fixture(scope="session")
def prompt_encoder() -> PromptEncoder:
    config = Config()
    return PromptEncoder(Tokenizer.from_package(), config.image, config.agent)


@pytest.fixture(scope="session")
def tools(tmp_path_factory):
    with open_tools(Config(), tmp_path_factory.mktemp("run")) as client:
        yield client
