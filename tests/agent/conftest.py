"""Provides a small tokenizer, a prompt encoder and a question for the tests of the agent loop."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dv2_jax.agent import prompts
from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.config import AgentConfig, ImageConfig
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer, train_bpe
from tests.agent.tool_results import png

IMAGE = ImageConfig(min_pixels=56 * 56, max_pixels=112 * 112)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe([*prompts.SYSTEM.values(), "Code execution result:\nstdout:\n```\nstderr:\n```"] * 2, 500)


@pytest.fixture(scope="session")
def agent() -> AgentConfig:
    return AgentConfig(max_turns=4, max_turn_tokens=400, max_total_tokens=4000, max_images=5, max_images_per_turn=3)


@pytest.fixture(scope="session")
def prompt_encoder(tokenizer, agent) -> PromptEncoder:
    return PromptEncoder(tokenizer, IMAGE, agent)


@pytest.fixture(scope="session")
def make_prompt_encoder(tokenizer, agent):
    """Returns a function that makes a prompt encoder whose agent config differs in the given fields."""
    return lambda **fields: PromptEncoder(tokenizer, IMAGE, replace(agent, **fields))


@pytest.fixture
def question() -> Question:
    return Question("q1", "perception", "perception", "What is written there?", (png(200, 100),), "7")
