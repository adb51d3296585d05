"""The default run's codec, and one tools service with the default index for all tests of the teacher."""

from __future__ import annotations

import pytest

from dv2_jax.agent.prompt_encoder import SpliceCodec
from dv2_jax.config import Config
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.rollout.tools_client import open_tools


@pytest.fixture(scope="session")
def codec() -> SpliceCodec:
    config = Config()
    return SpliceCodec(Tokenizer.from_package(), config.image, config.agent)


@pytest.fixture(scope="session")
def tools(tmp_path_factory):
    with open_tools(Config(), tmp_path_factory.mktemp("run")) as client:
        yield client
