"""Small files in the formats of released sets, with their irregularities; all contents are ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dv2_jax.agent.prompts import build_messages
from dv2_jax.data.question import Question
from tests.data.row_cases import png

PROMPT = [
    {"role": "system", "content": "You are an agent."},
    {"role": "user", "content": "<image>\nWhat is six times seven? Put your final answer inside <answer> </answer>."},
]
CODE = "<think>Compute.</think>\n<code>\n```python\nprint(6 * 7)\n```\n</code>"
ANSWER = "<think>The output is 42.</think>\n<answer>42</answer>"
LONG_THOUGHT = (
    "<think>" + " ".join(f"Step {n}: six more makes {6 * n}." for n in range(1, 8)) + "</think>\n<answer>42</answer>"
)


def observation(stdout: str) -> str:
    """Returns what the policy observes after a cell that prints `stdout`."""
    from dv2_jax.agent.observation import render_observation
    from dv2_jax.agent.parser import parse_turn
    from dv2_jax.config import AgentConfig
    from tools_service.client import Status, ToolResult

    result = ToolResult("r", "code", Status.OK, stdout=stdout)
    return render_observation(parse_turn(CODE), result, AgentConfig(), images_left=4, dataset_index="").text


def conversations(folder: Path) -> list[dict[str, Any]]:
    """Returns cold-start rows: with a call, with null and with missing `images`, and with an invented output."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (folder / "pictures" / "a.png").write_bytes(png(seed=1))

    def called(stdout: str) -> list[dict[str, str]]:
        return [
            *PROMPT,
            {"role": "assistant", "content": CODE},
            {"role": "user", "content": observation(stdout)},
            {"role": "assistant", "content": ANSWER},
        ]

    text_only = [
        {"role": "user", "content": "What is six times seven?"},
        {"role": "assistant", "content": LONG_THOUGHT},
    ]
    return [
        {"messages": called("42\n"), "images": ["pictures/a.png"]},
        {"messages": text_only, "images": None},
        {"messages": text_only},
        {"messages": called("41\n"), "images": ["pictures/a.png"]},  # no execution prints this
        {"messages": text_only, "images": []},
    ]


def write_conversations(folder: Path) -> Path:
    """Writes the rows in two parts, one per file format."""
    rows = conversations(folder)
    (folder / "part_1.json").write_text(json.dumps(rows[:3]))
    (folder / "part_2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[3:]))
    return folder


def rl_rows() -> list[dict[str, Any]]:
    """Returns RL rows of all data sources, whose `extra_info` differs, with the index of the released search results."""

    def row(source: str, answer: str, **extra: Any) -> dict[str, Any]:
        question = Question("x", source, source, f"Which one is {answer}?", (png(seed=len(answer)),), answer)
        return {
            "data_source": source,
            "prompt": [dict(message) for message in build_messages(question, "brief")],
            "images": [{"bytes": image} for image in question.images],
            "env_name": "deepeyes_v2",
            "reward_model": {"ground_truth": answer, "style": "rule"},
            "extra_info": {"question": question.text, "answer": answer, **extra},
        }

    return [
        row("perception", "B", index="sa_12", split="train", box=[1, 2, 3, 4]),
        row("reason", "3/4", index="retool_7", split="train", difficulty=0.5),
        row("search", "Oslo", index="fvqa_train_3", split="train", pages=3),
        row("vstar-test", "A", index="vstar_0"),
    ]


def write_rl(folder: Path) -> Path:
    """Writes the rows in two parts, as the released set is split."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rl_rows()
    pq.write_table(pa.Table.from_pylist(rows[:2]), folder / "perception_1.parquet")
    pq.write_table(pa.Table.from_pylist(rows[2:]), folder / "search.parquet")
    return folder
