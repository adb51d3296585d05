"""Kills the command evaluate at random moments while it asks an endpoint and a judge, and counts what they receive."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from dv2_jax.endpoint.chat_reply import request_digest
from dv2_jax.toy.benchmark_files.search_files import write_realx
from dv2_jax.toy.benchmark_files.tsv_tables import write_chartqa, write_vstar
from tests.rollout.rollout_cases import code, search

ROOT = Path(__file__).resolve().parents[2]
ROWS, KILLS, CONCURRENCY = 12, 10, 4
PROBE = "Reply with Yes."
TIMES = re.compile(r'\s*"(seconds|seconds_per_answer)": [0-9.]+,?')


def reply(body: dict, number: int) -> str:
    """Replies as a policy with tools does, differently to each question but always alike to the same request."""
    messages = body["messages"]
    if messages[0]["role"] != "system":
        return f"It is {len(str(messages)) % 7}."
    turn = sum(message["role"] == "assistant" for message in messages)
    turns = [code("print(image_1.size)"), search("a fact") if "Search" in str(messages[0]) else code("print(1)")]
    return [*turns, f"<think>x</think>\n<answer>{len(str(messages[1])) % 7}</answer>"][turn]


def verdict(body: dict, number: int) -> str:
    return r"\boxed{Yes}" if len(str(body["messages"])) % 2 else r"\boxed{No}"


def digest_of(body: dict) -> str:
    parameters = {name: value for name, value in body.items() if name not in ("model", "messages")}
    return request_digest(body["model"], body["messages"], parameters)


class Run:
    """Starts the command in a run directory and reads what it has stored."""

    def __init__(self, folder: Path, data: Path, model, judge):
        self.folder, self.servers = folder / "evaluate", {"answers": model, "judge": judge}
        self.words = [
            f"--config.run.root={folder}", f"--config.eval.data={data}", "--config.eval.benchmarks=vstar,chartqa,realx",
            f"--config.eval.endpoint={model.url}", f"--config.eval.endpoint_concurrency={CONCURRENCY}",
            f"--config.reward.judge_base_url={judge.url}", "--config.eval.tool_sets=none,protocol",
            "--config.eval.scorers=official,deepeyesv2", "--config.agent.system_prompt=per_tool",
        ]  # fmt: skip

    def start(self) -> subprocess.Popen:
        command = [sys.executable, "-m", "dv2_jax.evaluate", *self.words]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def sent(self) -> list[tuple[str, str]]:
        """Returns (server, digest) of every request so far, in order; the probe at each start asks no question."""
        bodies = [(name, body) for name, server in self.servers.items() for body in server.requests]
        return [(name, digest_of(body)) for name, body in bodies if body["messages"][-1]["content"] != PROBE]

    def count(self) -> int:
        return sum(len(server.requests) for server in self.servers.values())

    def stored(self) -> set[tuple[str, str]]:
        """Returns (server, digest) of every reply in a complete line of the journals."""
        found = set()
        for name in self.servers:
            path = self.folder / "replies" / f"{name}.jsonl"
            lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
            found |= {(name, json.loads(line)["digest"]) for line in lines}
        return found

    def tables(self) -> dict[str, str]:
        """Returns the files with results, without seconds and the text of results.json that has them."""
        paths = [*(self.folder / "results").iterdir(), *(self.folder / "report" / "figures").glob("*.csv")]
        return {str(path.relative_to(self.folder)): TIMES.sub("", path.read_text()) for path in paths}


@pytest.mark.long
def test_ten_kills_change_no_table_and_no_stored_reply_is_requested_again(serve, tmp_path):
    """Catches a reply that is paid twice, and an answer, a tool call or a verdict that an interruption changes.

    A request whose reply had not arrived when the process was killed is sent again: nobody has its reply.
    """
    data = tmp_path / "data"
    data.mkdir()
    for write in (write_vstar, write_chartqa, write_realx):
        write(data, ROWS, 1)
    alone = Run(tmp_path / "alone", data, serve(reply, delay_s=0.02), serve(verdict, delay_s=0.02))
    process = alone.start()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    requests = alone.sent()
    assert set(requests) == alone.stored() and len(requests) == len(set(requests))

    run = Run(tmp_path / "killed", data, serve(reply, delay_s=0.02), serve(verdict, delay_s=0.02))
    rng, kills, in_flight, seen, stored = random.Random(0), 0, 0, Counter(), set()

    def check_new_requests() -> None:
        new = Counter(run.sent()) - seen
        assert not set(new) & stored, "a request whose reply was stored is sent again"
        assert max(new.values(), default=1) == 1, "a request is sent twice by one process"
        seen.update(new)

    finished = False
    while kills < KILLS and not finished:
        process, before = run.start(), run.count()
        wanted = before + rng.randint(3, 2 * len(requests) // KILLS)
        while run.count() < wanted and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        finished = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.1)  # until the servers have read what was on its way
        check_new_requests()
        stored = run.stored()
        assert stored <= set(seen)
        if not finished:
            kills += 1
            in_flight += len(set(seen) - stored)
    process = run.start()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    check_new_requests()
    assert run.stored() == set(seen) == set(requests)
    assert run.tables() == alone.tables() and len(run.tables()["results/table.csv"].splitlines()) > 20
    again = seen.total() - len(seen)
    assert again <= in_flight and kills >= KILLS // 2
    print(f"{kills} kills, {len(seen)} requests; sent again: {again}, all without a reply when the process was killed")
