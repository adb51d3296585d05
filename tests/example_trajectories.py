"""Example trajectories of every kind, built with `TrajectoryBuilder` without an engine."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.agent.trajectory_builder import TrajectoryBuilder
from dv2_jax.config import AgentConfig, ImageConfig
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer, train_bpe
from tests.agent.tool_results import Item, Result
from tools_service.common.status import Status

CROP = "<think>It is small.</think>\n<code>\n```python\nimage_1.crop((100, 40, 140, 80))\n```\n</code>"
SUM = "<think>I add.</think>\n<code>\n```python\n# 両方\nprint(12 + 30)\n```\n</code>"
SEARCH = '<think>I look it up.</think>\n<tool_call>\n{"name": "search", "arguments": {"query": "capital of Chad"}}\n</tool_call>'


def png(width: int, height: int, seed: int = 0) -> bytes:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (max(1, height // 20), max(1, width // 20), 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BILINEAR).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="session")
def parts() -> SimpleNamespace:
    """Building blocks of dialogues: turn texts, tool results, images."""
    return SimpleNamespace(CROP=CROP, SUM=SUM, SEARCH=SEARCH, Item=Item, Result=Result, png=png)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    texts = [
        CROP,
        SUM.replace("両方", "both"),
        SEARCH,
        "Code execution result: stdout stderr Images the question of a picture answer think",
    ]
    return train_bpe(texts * 3, 420)


@pytest.fixture(scope="session")
def prompt_encoder(tokenizer) -> PromptEncoder:
    return PromptEncoder(tokenizer, ImageConfig(), AgentConfig())


@pytest.fixture(scope="session")
def make(prompt_encoder):
    """`make(question, [(turn text, result or None), ...], seed)` builds a trajectory with random log-probs."""

    def play(question: Question, steps: list[tuple[str, Result | None]], seed: int = 0) -> Trajectory:
        rng = np.random.default_rng(seed)
        builder = TrajectoryBuilder(prompt_encoder, question, f"{question.id}-{seed}")
        for text, result in steps:
            ids = prompt_encoder.chat.encode_assistant(text)
            builder.append_generation(ids, [-float(np.float32(x)) for x in rng.gamma(0.5, 0.6, len(ids))], seed)
            if builder.finish is None:
                builder.append_tool_output(result, wall_ms=12.5)
        return builder.trajectory()

    return play


@pytest.fixture(scope="session")
def trajectories(make) -> list[Trajectory]:
    """Correct and wrong trajectories: with a crop, a sum, a search, a failed cell, and without a tool."""
    look = Question("q-look", "perception", "perception", "Which digit is in the corner?", (png(1200, 900),), "7")
    add = Question("q-add", "reasoning", "reason", "What is 12 + 30? <b>&amp;", (), "42", "number")
    find = Question("q-find", "search", "search", "What is the capital of Chad?", (), "N'Djamena")
    plain = Question("q-plain", "plain", "perception", "What colour is it?", (png(200, 100, 1),), "red")
    cropped = Result(images=(png(40, 40, 2),))
    failed = Result(Status.ERROR, stderr="NameError: name 'imge_1' is not defined")
    found = Result(items=(Item("N'Djamena", "https://example.org/chad", "Capital of Chad."),))
    return [
        make(look, [(CROP, cropped), ("A seven.</think>\n<answer>7</answer>", None)], 1),
        make(
            look,
            [(CROP, failed), (CROP.removeprefix("<think>"), cropped), ("One.</think>\n<answer>1</answer>", None)],
            2,
        ),
        make(add, [(SUM, Result(stdout="42\n")), ("So 42.</think>\n<answer>42</answer>", None)], 3),
        make(find, [(SEARCH, found), ("Found.</think>\n<answer>N'Djamena</answer>", None)], 4),
        make(plain, [("<think>It is red.</think>\n<answer>red</answer>", None)], 5),
    ]
