"""The command evaluate with a local HTTP server as the model or the judge, on small files in the published formats."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest

from benchmarks.chat_server import ChatServer, completion, error
from dv2_jax import evaluate
from dv2_jax.config import load
from dv2_jax.evaluation.record_files import read_lines
from dv2_jax.toy.benchmark_files.search_files import write_realx
from dv2_jax.toy.benchmark_files.tsv_tables import write_chartqa, write_vstar
from tests.rollout.rollout_cases import IMAGE_SEARCH, code, search

ROWS = 9


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for write in (write_realx, write_vstar, write_chartqa):
        write(folder, ROWS, 1)
    return folder


def words(root: Path, data: Path, *more: str) -> list[str]:
    return [f"--config.run.root={root}", f"--config.eval.data={data}", *more]


def config_of(root: Path, data: Path, *more: str, preset: str = ""):
    return load(words(root, data, *more), command="evaluate", default_config=f"configs/evaluate.py{preset}")


def fail(monkeypatch, capsys, arguments: list[str]) -> str:
    """Runs the command, which must fail, and returns its message: one line without a traceback."""
    monkeypatch.setattr(sys, "argv", ["dv2-evaluate", *arguments])
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    assert ended.value.code in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def images_of(body: dict) -> list[bytes]:
    parts = [part for message in body["messages"] for part in message["content"] if isinstance(part, dict)]
    return [base64.b64decode(p["image_url"]["url"].partition(",")[2]) for p in parts if p["type"] == "image_url"]


def records(run_dir: Path, name: str) -> list[dict]:
    return [line for _, line in read_lines(run_dir / "trajectories" / f"{name}.jsonl")]


def test_the_baselines_of_table_1_are_one_command(serve, tmp_path, data):
    """Catches a search that a baseline does not have and gets all the same, and one that it has and does not get."""

    def reply(body, number):
        turns = [IMAGE_SEARCH, search("a fact"), "<think>x</think>\n<answer>7</answer>"]
        return turns[sum(message["role"] == "assistant" for message in body["messages"])]

    def asked_without_tools(body, number):
        return reply(body, number) if body["messages"][0]["role"] == "system" else "It is 7."

    server = serve(asked_without_tools)
    config = config_of(tmp_path, data, f"--config.eval.endpoint={server.url}", "--config.eval.size=3", preset=":table1")
    rows = evaluate.run(config)["benchmarks"]["realx"]["rows"]
    sets = {
        "evaluate-none": [], "evaluate-text_search": ["search"], "evaluate-image_search": ["image_search"],
        "evaluate-both_searches": ["image_search", "search"],
    }  # fmt: skip
    assert list(rows) == list(sets)
    for name, tools in sets.items():
        assert [row["name"] for row in rows[name]] == ["perception", "reasoning", "search", "integration", "overall"]
        assert rows[name][-1]["n"] + rows[name][-1]["failed"] == 3
        for record in records(tmp_path / "table1", f"{name}@realx"):
            assert sorted(record["answer"]["tools"]) == tools and record["answer"]["final"] in ("7", "It is 7.")
            assert [turn["kind"] for turn in record["turns"] if turn["status"] == "ok"] == tools
    systems = {
        message["content"]
        for body in server.requests
        for message in body["messages"][:1]
        if message["role"] == "system"
    }
    assert len(systems) == 3 and all(
        len(images_of(body)) >= 1 for body in server.requests[1:]
    )  # the first is the probe
    sent = len(server.requests)
    again = evaluate.run(config)
    assert len(server.requests) == sent + 1 and again["benchmarks"]["realx"]["rows"] == rows  # the probe


def test_rows_that_are_read_when_they_are_asked_have_their_own_images(serve, tmp_path, data):
    """Catches the image of another row, in a file of which memory holds none, with our tools and without."""

    def reply(body, number):
        if (
            body["messages"][0]["role"] != "system"
            or body["messages"][-1]["role"] == "user"
            and len(body["messages"]) > 2
        ):
            return completion("<answer>B</answer>")
        return completion(code("print(image_1.size)"))

    server = serve(reply)
    config = config_of(
        tmp_path, data, f"--config.eval.endpoint={server.url}", "--config.eval.benchmarks=vstar,chartqa",
        "--config.eval.tool_sets=none,protocol", "--config.agent.system_prompt=per_tool",
    )  # fmt: skip
    results = evaluate.run(config)
    for name in ("vstar", "chartqa"):
        rows = results["benchmarks"][name]["rows"]
        assert {stage: found[-1]["n"] for stage, found in rows.items()} == {"evaluate-none": ROWS, "evaluate": ROWS}
        assert rows["evaluate"][-1]["value"] == rows["evaluate-none"][-1]["value"]
    from dv2_jax.evaluation.benchmarks.benchmark_registry import BENCHMARKS
    from dv2_jax.rollout.question_sources import read_rows

    wanted = {}
    for name in ("vstar", "chartqa"):
        benchmark = BENCHMARKS.get(name)()
        for question in benchmark.load(config, read_rows):
            wanted[benchmark.prompt(question).strip()] = list(question.images)
    plain = [body for body in server.requests[1:] if body["messages"][0]["role"] == "user"]
    assert len(plain) == 2 * ROWS
    for body in plain:
        text = body["messages"][0]["content"][-1]["text"].strip()
        assert images_of(body) == wanted[text]
    observed = [body for body in server.requests if len(body["messages"]) > 2]
    assert len(observed) == 2 * ROWS and all("(" in json.dumps(body["messages"][-1]) for body in observed)


def test_a_broken_endpoint_is_one_sentence_and_loses_no_answer(tmp_path, data, monkeypatch, capsys):
    """Catches answers that are asked for again, or counted as wrong, because the endpoint was away."""
    common = [
        "--config.eval.benchmarks=chartqa",
        "--config.eval.tool_sets=none",
        "--config.eval.endpoint_concurrency=2",
    ]
    arguments = words(tmp_path, data, *common)
    message = fail(monkeypatch, capsys, [*arguments, "--config.eval.endpoint=http://127.0.0.1:9/v1"])
    assert "eval.endpoint = http://127.0.0.1:9/v1: no connection" in message and "start it" in message
    broken_after = 5

    def reply(body, number):
        return "7" if number < broken_after else error(401, "the key has expired")

    server = ChatServer(reply)
    message = fail(monkeypatch, capsys, [*arguments, f"--config.eval.endpoint={server.url}"])
    server.close()
    assert "401, the API key is refused; set DV2_ENDPOINT_API_KEY" in message
    stored = records(tmp_path / "evaluate", "evaluate-none@chartqa")
    assert [record["answer"]["final"] for record in stored] == ["7"] * (broken_after - 1)  # the first was the probe
    server = ChatServer(lambda body, number: "7")
    results = evaluate.run(config_of(tmp_path, data, *common, f"--config.eval.endpoint={server.url}"))
    server.close()
    assert len(server.requests) == 1 + ROWS - len(stored)
    overall = results["benchmarks"]["chartqa"]["rows"]["evaluate-none"][-1]
    assert (overall["n"], overall["failed"]) == (ROWS, 0)


def test_a_judge_that_replies_nonsense_leaves_answers_undecided(serve, tmp_path, data):
    """Catches nonsense that is read as a verdict or asked for again, and answers that are lost with it."""
    model = serve("<answer>something else</answer>")
    judge = serve("purple monkey dishwasher")
    common = [
        f"--config.eval.endpoint={model.url}", "--config.eval.benchmarks=realx", "--config.eval.tool_sets=none",
        "--config.reward.judge_model=served-model",
    ]  # fmt: skip
    config = config_of(tmp_path, data, *common, f"--config.reward.judge_base_url={judge.url}")
    results = evaluate.run(config)["benchmarks"]["realx"]
    overall = results["rows"]["evaluate-none"][-1]
    assert (overall["value"], overall["n"], overall["failed"], overall["undecided"]) == (None, 0, 0, ROWS)
    reasons = set(
        json.loads((tmp_path / "evaluate/results/realx.json").read_text())["failures"]["evaluate-none"].values()
    )
    assert reasons == {"the judge's reply has no verdict: purple monkey dishwasher"}
    asked = len(judge.requests)
    assert asked == 1 + ROWS  # the probe, and once each
    evaluate.run(config)
    assert len(judge.requests) <= asked + 1
    sensible = serve(r"\boxed{Yes}", models=("another",))
    another = (f"--config.reward.judge_base_url={sensible.url}", "--config.reward.judge_model=another")
    config = config_of(tmp_path, data, *common, *another)
    sent = len(model.requests)
    overall = evaluate.run(config, rejudge=True)["benchmarks"]["realx"]["rows"]["evaluate-none"][-1]
    assert len(model.requests) <= sent + 1
    assert (overall["value"], overall["n"], overall["undecided"]) == (1.0, ROWS, 0)
