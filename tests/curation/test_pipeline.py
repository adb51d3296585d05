"""Tests the pipeline from raw rows to written sets, with a local endpoint as model and teacher and the real tools service.

Catches: a stage that labels rows which an earlier one dropped, an answered request that is sent again, output that depends on
the order of answers or on interruptions, trajectories whose stored outputs no tool wrote, sets that training cannot read.
"""

from __future__ import annotations

import dataclasses
import json

import pytest

from benchmarks.chat_server import ChatServer, Raw
from dv2_jax import curate
from dv2_jax.config import ConfigError, RunFailure, load
from dv2_jax.curation.curation import Curation
from dv2_jax.data.rows import read_conversations, read_questions
from dv2_jax.telemetry.progress import Display
from dv2_jax.toy.tasks import make_questions

SIZE, SAMPLES = 15, 3
ANSWERS = {question.text: question.answer for question in make_questions("train", SIZE, 0)}
CODE = "<think>Compute.</think>\n<code>\n```python\nprint(6 * 7)\n```\n</code>"


def text_of(message: dict) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def answer_of(body: dict) -> tuple[str, str] | None:
    """Returns the text and the reference of the question that a request asks."""
    text = next(text_of(message) for message in body["messages"] if message["role"] == "user")
    return next(((question, answer) for question, answer in ANSWERS.items() if question in text), None)


def reply(body: dict, number: int) -> object:
    """Plays all models: `base` solves a third without tools and a third with them; `teacher` solves every second row."""
    if (found := answer_of(body)) is None:
        return "ready"  # to the probe
    question, answer = found
    kind = sum(question.encode()) % 3
    if number == 5:
        return Raw(429, b"{}", {"retry-after": "0.01"})
    if body["model"] == "base":
        has_tools = any(message["role"] == "system" for message in body["messages"])
        solved = kind == 0 or (kind == 1 and has_tools)
        return f"<think>x</think>\n<answer>{answer if solved else 'no idea'}</answer>"
    if not any("42" in text_of(message) for message in body["messages"][2:]):
        return CODE
    is_wrong = sum(question.encode()) % 2
    return f"<think>It is 42.</think>\n<answer>{'no idea' if is_wrong else answer}</answer>"


@pytest.fixture
def server():
    found = ChatServer(reply, models=("base", "teacher"))
    yield found
    found.close()


def config(tmp_path, server, *overrides: str):
    return load(
        [
            f"--config.run.root={tmp_path}",
            f"--config.curate.size={SIZE}",
            f"--config.curate.samples={SAMPLES}",
            "--config.curate.max_solved_without_tools=1",
            f"--config.curate.endpoint={server.url}",
            "--config.curate.endpoint_model=base",
            f"--config.curate.teachers={server.url}#teacher",
            "--config.curate.attempts=2",
            "--config.curate.concurrency=4",
            *overrides,
        ],
        command="curate",
        default_config="configs/curate.py",
    )


def questions_sent(server: ChatServer) -> int:
    """Returns the number of requests that ask a question; each start also sends a probe per endpoint."""
    return sum(answer_of(body) is not None for body in server.requests)


def output(tmp_path, name="curate"):
    return tmp_path / name / "output"


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_rows_go_where_their_labels_send_them_and_no_answer_is_paid_twice(tmp_path, server):
    curate.run(config(tmp_path, server))
    lines = [json.loads(line) for line in (output(tmp_path) / "provenance.jsonl").read_text().splitlines()]
    assert len(lines) == SIZE
    by_id = {line["id"]: line for line in lines}
    for question in make_questions("train", SIZE, 0):
        line, kind = by_id[f"embedded/{question.id}"], sum(question.text.encode())
        if kind % 3 == 0:
            wanted = ("dropped", "difficulty")
        elif kind % 3 == 1:
            wanted = ("rl", "")
        else:
            wanted = ("dropped", "synthesize") if kind % 2 else ("cold_start", "")
        assert (line["decision"], line["stage"]) == wanted, line
        assert line["license"] and line["source"] == "embedded" and line["digest"]
    rl = list(read_questions(output(tmp_path) / "rl.parquet"))
    sft = list(read_conversations(output(tmp_path) / "sft.json"))
    decisions = [line["decision"] for line in lines]
    assert len(rl) == decisions.count("rl") > 0 and len(sft) == decisions.count("cold_start") > 0
    assert all("42" in row.messages[3]["content"] for row in sft), "the observation is that of the execution"

    sent = questions_sent(server)
    before = contents(output(tmp_path))
    curate.run(config(tmp_path, server))
    assert questions_sent(server) == sent and contents(output(tmp_path)) == before


@pytest.mark.long
def test_a_lost_journal_costs_no_request_that_was_answered(tmp_path, server):
    """The replies are stored before the labels: a process killed between the two asks for nothing again."""
    curate.run(config(tmp_path, server))
    before = contents(output(tmp_path))
    answered = questions_sent(server)
    for path in (tmp_path / "curate" / "journal").glob("*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"row": "torn')
    with pytest.warns(UserWarning, match="incomplete"):
        curate.run(config(tmp_path, server))
    assert questions_sent(server) == answered
    assert contents(output(tmp_path)) == before


@pytest.mark.long
def test_thresholds_change_without_new_samples_and_other_settings_are_refused(tmp_path, server):
    curate.run(config(tmp_path, server))
    sampled = sum(body["model"] == "base" for body in server.requests)
    curate.run(config(tmp_path, server, "--config.curate.min_solved_with_tools=4"))  # nothing is for RL now
    assert sum(body["model"] == "base" for body in server.requests) == sampled
    assert not list(read_questions(output(tmp_path) / "rl.parquet"))
    with pytest.raises(ConfigError, match="curate.temperature = 1.0 there, 0.5 here"):
        curate.run(config(tmp_path, server, "--config.curate.temperature=0.5"))


@pytest.mark.long
def test_shards_together_write_what_one_process_writes(tmp_path, server):
    curate.run(config(tmp_path, server))
    local = "--config.curate.stages=read,difficulty,benefit,synthesize,verify"
    for index in (1, 0):
        shard = f"--config.curate.shard={index}/2"
        curate.run(config(tmp_path, server, "--config.run.name=shards", shard, local))
    everything = "--config.curate.stages=read,difficulty,benefit,synthesize,verify,mix"
    curate.run(config(tmp_path, server, "--config.run.name=shards", "--config.curate.shard=0/2", everything))
    for name in ("rl.parquet", "sft.json"):
        assert (output(tmp_path) / name).read_bytes() == (output(tmp_path, "shards") / name).read_bytes()


def test_stages_that_compare_rows_wait_for_the_rows_and_labels_of_other_shards(tmp_path, server):
    """Catches: a first shard that deduplicates or mixes its own rows as if they were all."""
    with pytest.raises(RunFailure, match="rows of curate.shard = 1/2 wait to be read: .* before deduplicate"):
        curate.run(config(tmp_path, server, "--config.curate.shard=0/2"))
    with pytest.raises(RunFailure, match="rows wait .*for difficulty.*: run the other shards"):
        read = "--config.curate.stages=read"
        curate.run(config(tmp_path, server, "--config.run.name=labels", "--config.curate.shard=1/2", read))
        stages = "--config.curate.stages=read,difficulty,mix"
        curate.run(config(tmp_path, server, "--config.run.name=labels", "--config.curate.shard=0/2", stages))


def test_an_output_that_no_tool_wrote_is_dropped(tmp_path, server):
    """Changes one stored observation, as released sets contain invented ones."""
    curate.run(config(tmp_path, server))
    kept = len(list(read_conversations(output(tmp_path) / "sft.json")))
    (journal,) = (tmp_path / "curate" / "journal").glob("synthesize-*.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    changed = next(line for line in lines if line["kept"])
    changed["turns"][0]["observation"] = changed["turns"][0]["observation"].replace("42", "43")
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for path in (tmp_path / "curate" / "journal").glob("verify-*.jsonl"):
        path.unlink()
    curate.run(config(tmp_path, server))
    assert len(list(read_conversations(output(tmp_path) / "sft.json"))) == kept - 1
    provenance = (output(tmp_path) / "provenance.jsonl").read_text()
    assert "turn 1: the stored output differs from that of the execution" in provenance


def test_the_plan_sends_nothing(tmp_path, server, capsys):
    curate.plan(config(tmp_path, server, "--config.curate.stages=read,deduplicate,mix"))
    curate.run(config(tmp_path, server, "--config.curate.stages=read,deduplicate,mix"))
    curate.plan(config(tmp_path, server))
    assert server.requests == []
    assert f"{SIZE * SAMPLES}" in capsys.readouterr().out


def test_decisions_of_an_open_curation(tmp_path, server):
    settings = config(tmp_path, server, "--config.curate.stages=read,mix")
    settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, name="plain"))
    curate.run(settings)
    with Curation.open(settings, tmp_path / "plain", Display(enabled=False)) as curation:
        assert {curation.decision(row_id).destination for row_id in curation.store.ids()} == {"rl"}
