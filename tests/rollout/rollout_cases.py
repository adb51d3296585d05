"""Builds questions, turn texts and a scheduler with a scripted engine for the rollout tests."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.config import AgentConfig, ImageConfig, SamplingConfig, ToolsConfig
from dv2_jax.data.question import Question
from dv2_jax.rollout.scheduler import RolloutRequest, RolloutScheduler
from tests.rollout.scripted_engine import ScriptedEngine

AGENT = AgentConfig(max_turns=4, max_turn_tokens=300, max_total_tokens=1500, max_images=4)
TOOLS = ToolsConfig(retries=2, cell_timeout_s=10.0)


def make_image(seed: int, height: int = 64, width: int = 80) -> bytes:
    # Large blocks of color, which image search can distinguish.
    blocks = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(buffer, format="PNG")
    return buffer.getvalue()


def question(number: int = 0, num_images: int = 1, text: str = "What is it?") -> Question:
    images = tuple(make_image(number + i) for i in range(num_images))
    return Question(f"q{number}", "perception", "perception", text, images, answer="7")


def requests(*names: str, num_images: int = 1) -> list[RolloutRequest]:
    return [RolloutRequest(question(0, num_images), name, number) for number, name in enumerate(names)]


def scheduler(tokenizer, client, script, agent=AGENT, tools=TOOLS) -> RolloutScheduler:
    prompt_encoder = PromptEncoder(tokenizer, ImageConfig(), agent)
    engine = ScriptedEngine(prompt_encoder.chat, script)
    return RolloutScheduler(engine, client, prompt_encoder, agent, tools, SamplingConfig())


def code(text: str) -> str:
    return f"<think>x</think>\n<code>\n```python\n{text}\n```\n</code>"


def search(query: str) -> str:
    return f'<think>x</think>\n<tool_call>\n{{"name": "search", "arguments": {{"query": "{query}"}}}}\n</tool_call>'


IMAGE_SEARCH = '<think>x</think>\n<tool_call>\n{"name": "image_search"}\n</tool_call>'
ANSWER = "<think>x</think>\n<answer>7</answer>"
