"""The identity of a prompt: two answers with equal digests, model and tools answer the same request."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from dv2_jax.agent.prompts import build_messages
from dv2_jax.agent.tools.tool_registry import run_tools
from dv2_jax.config import AgentConfig, Config
from dv2_jax.data.question import Question


class PromptDigest:
    """Computes the digests of prompts under the settings of one stage.

    Args:
        agent: prompt, tools and limits of the stage.
        temperature: of sampling.
        settings: further JSON values that change answers, such as the limits of an endpoint.
    """

    def __init__(self, config: Config, agent: AgentConfig, temperature: float, **settings: object):
        self._agent, self._tools = agent, run_tools(agent)
        limits = asdict(agent) | {"tools": [tool.name for tool in self._tools], "system_prompt": ""}  # in the messages
        seed = config.run.seed if temperature else 0  # greedy decoding has no random numbers
        self._settings = [limits, asdict(config.image), temperature, seed, settings]

    def __call__(self, question: Question) -> str:
        """Returns the SHA-256 of the messages, the images and the settings, as hexadecimal text."""
        messages = build_messages(question, self._agent.system_prompt, self._tools)
        images = [hashlib.sha256(image).hexdigest() for image in question.images]
        text = json.dumps([messages, images, self._settings], sort_keys=True, default=str)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
