"""The real command with a model behind an endpoint, a judge, prices and several tool sets: local HTTP servers, real tools."""

import base64
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.chat_server import ChatServer, completion
from dv2_jax import evaluate as evaluate_command
from dv2_jax.config import run_command
from dv2_jax.telemetry.trajectories import read_trajectories
from tests.rollout.conftest import service  # noqa: F401
from tests.rollout.rollout_cases import IMAGE_SEARCH, code, make_image, search

ROOT = Path(__file__).resolve().parents[2]
PROBE = [{"role": "user", "content": "Reply with Yes."}]
SUMS = {f"Sum {number}?": str(40 + number) for number in range(4)}


def rows(folder: Path) -> str:
    """Writes questions in the released format, with their own answers, and returns the path."""
    path = folder / "sums.jsonl"
    lines = [
        {
            "images": [{"bytes": base64.b64encode(make_image(number)).decode()}],
            "data_source": "perception",
            "prompt": [{"role": "user", "content": f"<image>\n{text}"}],
            "env_name": "deepeyes_v2",
            "reward_model": {"ground_truth": answer, "style": "rule"},
            "extra_info": {"question": text, "answer": answer, "index": str(number)},
        }
        for number, (text, answer) in enumerate(SUMS.items())
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def asked(body: dict) -> str:
    return next(text for text in SUMS if text in json.dumps(body["messages"]))


def model(body: dict, number: int):
    """Answers without tools in words, for the judge; with tools after one call of each tool."""
    if body["messages"] == PROBE:
        return "Yes"
    text = asked(body)
    if "stop" not in body:
        answer = {"Sum 0?": "four times ten", "Sum 1?": "41", "Sum 2?": "no idea"}.get(text)
        return completion(answer or "cut", "stop" if answer else "length", prompt=100, generated=5)
    turn = sum(message["role"] == "assistant" for message in body["messages"])
    calls = [
        code(f"print({SUMS[text]})").removesuffix("</code>"),
        search("Mount Kea").removesuffix("</tool_call>"),
        IMAGE_SEARCH,
    ]
    if turn < len(calls):
        return completion(calls[turn], prompt=200, generated=20)
    return completion(f"<think>so</think><answer>{SUMS[text]}</answer>", prompt=300, generated=10)


def judge(body: dict, number: int):
    """Accepts the number in words, and says nothing on the last one."""
    text = json.dumps(body["messages"])
    return r"\boxed{Yes}" if "four times ten" in text else "I do not know."


@pytest.fixture(scope="module")
def world(tmp_path_factory, service):  # noqa: F811
    folder = tmp_path_factory.mktemp("endpoint")
    answers, verdicts = ChatServer(model), ChatServer(judge)
    (folder / "prices.json").write_text(
        json.dumps({"served-model": {"input": 1.0, "output": 10.0, "currency": "USD", "date": "2026-11-01"}})
    )
    arguments = [
        f"--config.run.root={folder}", f"--config.eval.benchmarks={rows(folder)}", f"--config.eval.endpoint={answers.url}",
        "--config.eval.tool_sets=none,all", f"--config.reward.judge_base_url={verdicts.url}", "--config.eval.attempts=2",
        f"--config.eval.prices={folder}/prices.json", f"--config.tools.address={service.address}",
        "--config.agent.system_prompt=per_tool",
    ]  # fmt: skip
    yield folder, answers, verdicts, arguments
    answers.close()
    verdicts.close()


def evaluate(*arguments: str, **kwargs) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "dv2_jax.evaluate", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, **kwargs)


def test_an_endpoint_is_measured_like_the_own_model(world):
    """Catches: a failed answer that counts as wrong, an unreadable verdict that counts, and requests that are repeated."""
    folder, answers, verdicts, arguments = world
    done = evaluate(*arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((folder / "evaluate" / "results.json").read_text())
    assert results["model"] == "served-model"
    plain, tools = (results["benchmarks"]["sums"]["rows"][stage["name"]][-1] for stage in results["stages"])
    assert (tools["value"], tools["n"], tools["failed"], tools["undecided"]) == (1.0, 4, 0, 0)
    assert (plain["value"], plain["n"], plain["failed"], plain["undecided"]) == (1.0, 2, 1, 1)
    # 4 questions without tools, 4 turns each of 4 with tools, and the probe; the cut answer is not paid twice.
    assert len(answers.requests) == 4 + 16 + 1
    assert len(verdicts.requests) == 2 + 1
    names = [stage["name"] for stage in results["stages"]]
    records = {name: list(read_trajectories(folder / "evaluate" / "trajectories", f"{name}@sums")) for name in names}
    for record in records[names[1]]:
        assert [turn["kind"] for turn in record["turns"]] == ["code", "search", "image_search", "answer"]
        info = record["answer"]
        assert (info["requests"], info["prompt_tokens"], info["completion_tokens"]) == (4, 900, 70)
        assert record["token_ids"] == [] and info["cached_tokens"] == 16
    failures = {record["answer"]["failure"] for record in records[names[0]]} - {""}
    assert len(failures) == 1 and "finish_reason length" in failures.pop()
    usage = results["benchmarks"]["sums"]["usage"][names[1]]
    assert usage["cost"] == pytest.approx(4 * (900 * 1 + 70 * 10) / 1e6)
    assert usage["cost_per_correct"] == pytest.approx(usage["cost"] / 4)
    scores = [
        json.loads(line) for line in (folder / "evaluate/scores" / f"{names[0]}@sums.jsonl").read_text().splitlines()
    ]
    judged = [score for score in scores if score["judge"]]
    assert {score["judge"][0]["reply"] for score in judged} == {r"\boxed{Yes}", "I do not know."}
    assert all(len(score["judge"][0]["prompt_digest"]) == 64 for score in judged)
    undecided = next(score for score in scores if score["outcome"] == "undecided")
    assert "I do not know." in undecided["score"]["failure"]
    page = (folder / "evaluate" / "report" / "index.html").read_text()
    assert "served-model" in page and "turn 4" in page and "runs code" in page


def test_the_same_command_and_a_rejudgment_send_nothing(world):
    folder, answers, verdicts, arguments = world
    sent = len(answers.requests), len(verdicts.requests)
    before = json.loads((folder / "evaluate" / "results.json").read_text())
    for flags in ([], ["--rejudge"]):
        done = evaluate(*arguments, *flags)
        assert done.returncode == 0, done.stderr[-3000:]
        after = json.loads((folder / "evaluate" / "results.json").read_text())
        assert after["benchmarks"] == before["benchmarks"]
    probes = [body for body in answers.requests[sent[0] :] if body["messages"] == PROBE]
    assert len(answers.requests) - sent[0] == len(probes) <= 2  # one per start
    new = verdicts.requests[sent[1] :]
    assert all(body["messages"] == PROBE for body in new) and len(new) <= 2


def test_kill_9_repeats_no_request_whose_reply_arrived(world):
    """Catches: a killed evaluation that pays again; the final table equals the uninterrupted one."""
    folder, answers, verdicts, arguments = world
    expected = json.loads((folder / "evaluate" / "results.json").read_text())["benchmarks"]["sums"]["rows"]
    start = len(answers.requests)
    words = [sys.executable, "-m", "dv2_jax.evaluate", *arguments, "--config.run.name=killed"]
    journal = folder / "killed" / "replies" / "answers.jsonl"
    for target in (3, 11):
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if journal.exists() and journal.read_bytes().count(b"\n") >= target:
                break
            time.sleep(0.002)
        os.kill(process.pid, 9)
        process.wait()
    done = evaluate(*arguments, "--config.run.name=killed")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((folder / "killed" / "results.json").read_text())["benchmarks"]["sums"]["rows"] == expected
    sent = Counter(json.dumps(body, sort_keys=True) for body in answers.requests[start:] if "stop" in body)
    assert len(sent) == 16 and max(sent.values()) <= 3  # in flight at a kill, at most
    assert journal.read_bytes().count(b"\n") == 20


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.eval.endpoint=http://127.0.0.1:1/v1", "error: eval.endpoint = http://127.0.0.1:1/v1: no connection"),
        ("--config.eval.endpoint_model=other", "error: eval.endpoint_model = 'other' is not served at"),
        ("--config.eval.judge_rubric=kind", "error: eval.judge_rubric: 'kind' is none of"),
        ("--config.eval.prices=none.json", "error: eval.prices = none.json: No such file"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(world, capsys, argument, message):
    """Catches: a stack trace, or a run that asks everything first."""
    folder, answers, verdicts, arguments = world
    words = [*arguments, "--config.run.name=broken", argument]
    with pytest.raises(SystemExit) as ended:
        run_command(evaluate_command.run, words, command="evaluate", default_config="configs/evaluate.py")
    assert ended.value.code == 2 and capsys.readouterr().err.splitlines()[-1].startswith(message)
    assert not (folder / "broken").exists()
