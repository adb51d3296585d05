"""Adds a calculator as a fourth tool, teaches the tiny policy to call it, and evaluates the policy with it.

    python examples/02_own_tool.py [FOLDER]

The class below is all that a tool needs. Scheduler, stop strings, loss mask, telemetry, report and chat take it from
`agent.tools`, where it is named by module and class.
"""

from __future__ import annotations

import ast
import json
import operator
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from dv2_jax.agent.tools.base import LocalCall, LocalOutput, ParsedTurn, RequestContext, Tool, malformed

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


class Calculator(Tool):
    """Evaluates `<calculate>12 * 34</calculate>` in a thread of the trainer, without the tools service."""

    name = tag = "calculate"
    title = "calculator"
    verb = "calculates"
    prompt = "Calculator: <calculate>12 * 34</calculate>"  # appended to the system prompt

    def parse(self, text: str) -> ParsedTurn | None:
        """Returns the call in a turn; None if there is none, so that the next tool is tried."""
        if self.opening_tag not in text:
            return None
        calls = re.findall(r"<calculate>([\d +*-]+)</calculate>", text)
        return ParsedTurn(self.name, calls[-1]) if calls else malformed("Error: only numbers and + - * are allowed.")

    def request(self, turn: ParsedTurn, context: RequestContext) -> LocalCall:
        """Returns the function to run; its exception would be the observation of this trajectory alone."""
        return LocalCall(context.request_id, self.name, lambda: LocalOutput(str(calculate(turn.payload))))


def calculate(expression: str) -> int:
    """Returns the value of a sum of products of integers. Raises ValueError for anything else."""

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        raise ValueError(f"cannot calculate {expression!r}")

    return value(ast.parse(expression.strip(), mode="eval").body)


def conversation(a: int, b: int) -> dict:
    """Returns an example of the cold start in which the assistant calls the calculator."""
    return {
        "messages": [
            *question(a, b)["prompt"],
            {"role": "assistant", "content": f"<think>I use it.</think>\n<calculate>{a} * {b}</calculate>"},
            {"role": "user", "content": f"<tool_response>\n{a * b}\n</tool_response>"},
            {"role": "assistant", "content": f"<think>I have it.</think>\n<answer>{a * b}</answer>"},
        ],
        "images": [],
    }


def question(a: int, b: int) -> dict:
    """Returns a row for evaluation and RL."""
    text = f"What is {a} times {b}?"
    return {
        "images": [],
        "data_source": "reason",
        "prompt": [{"role": "system", "content": Calculator.prompt}, {"role": "user", "content": text}],
        "reward_model": {"ground_truth": str(a * b)},
        "extra_info": {"question": text, "verifier": "number"},
    }


def write_rows(folder: Path) -> None:
    """Writes conversations to learn from, and questions with pairs of numbers that do not occur in them."""
    pairs = [(a, b) for a in range(11, 100) for b in range(11, 100)]
    random.Random(0).shuffle(pairs)
    folder.mkdir(parents=True, exist_ok=True)
    for name, make, part in (("sft", conversation, pairs[:400]), ("questions", question, pairs[400:420])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(make(*pair)) + "\n" for pair in part))


def command(*arguments: str) -> None:
    """Prints and runs a command of the package, with the folder of this file on the path."""
    print("$ python -m", *arguments, flush=True)
    paths = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    subprocess.run([sys.executable, "-m", *arguments], check=True, env=environment)


def main(folder: Path) -> None:
    write_rows(folder)
    tool = f"--config.agent.tools=code,search,image_search,{Path(__file__).stem}:Calculator"
    command(
        "dv2_jax.train", "--config=configs/sft.py", tool, "--config.model.init=package:cold_start",
        f"--config.sft.data={folder}/sft.jsonl", "--config.sft.steps=40",
        f"--config.run.root={folder}/runs", "--config.run.name=sft",
    )  # fmt: skip
    command(
        "dv2_jax.evaluate", tool, f"--config.model.init=checkpoint:{folder}/runs/sft",
        f"--config.task.source={folder}/questions.jsonl",
        f"--config.run.root={folder}/runs", "--config.run.name=evaluation",
    )  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
