"""Tests batch files of providers. Catches: a request that is written although its reply is stored, a file above the limits, a
result under another request's digest, a failed request that counts as answered, a stage that sends what a batch answered."""

from __future__ import annotations

import json

import pytest

from benchmarks.chat_server import Raw, completion
from dv2_jax import curate
from dv2_jax.config import ConfigError, RunFailure
from dv2_jax.curation.batch_files import read_results, write_batches
from dv2_jax.curation.stage import SingleRequest
from dv2_jax.endpoint import ChatReply, ReplyJournal, request_digest
from tests.curation.test_pipeline import config, output, questions_sent, reply, server  # noqa: F401 - a fixture


def request(number: int, size: int = 10) -> SingleRequest:
    return SingleRequest("big", [{"role": "user", "content": f"{number:04d}" + "x" * size}], {"max_tokens": 5})


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def journal(tmp_path):
    found = ReplyJournal(tmp_path / "replies.jsonl")
    yield found
    found.close()


def test_files_stay_within_both_limits_and_leave_out_what_is_answered(tmp_path, journal):
    known = request(3)
    digest = request_digest(known.model, known.messages, known.parameters)
    journal.add(ChatReply("yes", digest=digest))
    requests = [request(number % 10) for number in range(20)]  # each twice
    written = write_batches(requests, tmp_path / "batch", "difficulty", journal, max_requests=4, max_bytes=10_000)
    assert [count for _, count in written] == [4, 4, 1]
    assert [path.name for path, _ in written] == [f"difficulty-00{n}.jsonl" for n in range(3)]
    every = [line for path, _ in written for line in lines(path)]
    assert len({line["custom_id"] for line in every}) == 9 and digest not in {line["custom_id"] for line in every}
    assert every[0] | {"custom_id": ""} == {
        "custom_id": "", "method": "POST", "url": "/v1/chat/completions",
        "body": {"model": "big", "messages": list(request(0).messages), "max_tokens": 5},
    }  # fmt: skip
    small = write_batches(
        [request(n, 900) for n in range(6)], tmp_path / "batch", "difficulty", journal, max_bytes=2_500
    )
    assert [count for _, count in small] == [2, 2, 2]
    assert sorted(path.name for path in (tmp_path / "batch").iterdir()) == [path.name for path, _ in small]
    assert all(path.stat().st_size <= 2_500 for path, _ in small)
    with pytest.raises(RunFailure, match="exceeds 500"):
        write_batches([request(0, 900)], tmp_path / "batch", "difficulty", journal, max_bytes=500)


def test_results_become_replies_and_failures_none(tmp_path, journal):
    results = [
        {"custom_id": "a", "response": {"status_code": 200, "body": completion("yes")}, "error": None},
        {"custom_id": "b", "response": {"status_code": 429, "body": {}}, "error": None},
        {"custom_id": "c", "response": None, "error": {"code": "batch_expired", "message": "late"}},
        {"custom_id": "d", "response": {"status_code": 200, "body": {"choices": []}}, "error": None},
    ]
    path = tmp_path / "result.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in results))
    found = read_results(path, journal)
    assert (found.stored, found.known) == (1, 0) and sum(found.failures.values()) == 3
    assert {"status 429", "late"} <= set(found.failures)
    assert journal.get("a").text == "yes" and [journal.get(name) for name in "bcd"] == [None] * 3
    assert read_results(path, journal).known == 1
    for text in ("not json\n", '{"id": 1}\n', "[1]\n"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="line 1 is no result of a batch"):
            read_results(path, journal)
    with pytest.raises(ConfigError, match="No such file"):
        read_results(tmp_path / "absent", journal)


def test_a_stage_whose_requests_a_batch_answered_sends_nothing(tmp_path, server):  # noqa: F811
    """The same labels result as from requests one by one."""
    stages = "--config.curate.stages=read,difficulty,mix"
    alone = config(tmp_path, server, stages, "--config.run.name=alone")
    curate.run(alone)
    sent = questions_sent(server)
    assert sent > 0
    settings = config(tmp_path, server, stages)
    (path,) = curate.write_batch(settings, str(tmp_path / "batch"))
    results = []
    for line in lines(tmp_path / "batch" / "difficulty-000.jsonl"):
        body = reply(line["body"], 0)
        assert not isinstance(body, Raw)
        results.append({"custom_id": line["custom_id"], "response": {"status_code": 200, "body": completion(body)}})
    (tmp_path / "result.jsonl").write_text("".join(json.dumps(line) + "\n" for line in results))
    curate.read_batch(settings, str(tmp_path / "result.jsonl"))
    curate.run(settings)
    assert questions_sent(server) == sent, "only the run without a batch has sent questions"
    for name in ("rl.parquet", "provenance.jsonl"):
        assert (output(tmp_path) / name).read_bytes() == (output(tmp_path, "alone") / name).read_bytes()
    with pytest.raises(ConfigError, match="no stage .* waits? for single requests|has rows that wait"):
        curate.write_batch(settings, str(tmp_path / "batch"))
