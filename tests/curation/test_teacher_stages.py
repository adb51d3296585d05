"""Tests hints, long chains of thought, the pass without outputs, and the review, with a local endpoint in all roles.

Catches: a hint that reaches the set, a chain of thought with tools or without a check, a trajectory that is kept although its
output was not needed, a review without a verdict that counts as approval.
"""

from __future__ import annotations

import json

import pytest

from benchmarks.chat_server import ChatServer
from dv2_jax import curate
from dv2_jax.config import ConfigError, load
from dv2_jax.curation.stages.review import Review
from tests.curation.small_sets import CODE, LONG_THOUGHT
from tests.curation.test_pipeline import text_of

# What happens to each question, by the first word of its text.
NAMES = ("easy", "hinted", "betrayed", "plain", "needless", "irrelevant", "mute", "never")


def reply(body: dict, number: int) -> str:
    """Plays the labeled model, the teacher and the judge."""
    texts = [text_of(message) for message in body["messages"]]
    everything = "\n".join(texts)
    name = next((name for name in NAMES if f"{name}: " in everything), None)
    if name is None and "long " not in everything:
        return "ready"  # to the probe
    if body["model"] == "judge":
        if name == "mute":
            return "I would rather not say."
        verdict = {"relevant": name != "irrelevant", "coherent": True, "grounded": True, "reason": "because"}
        return f"<think>{{}}</think>{json.dumps(verdict)}"
    if body["model"] == "base":
        knows = name == "needless" and "cannot be shown" in everything
        return f"<think>x</think>\n<answer>{'42' if knows else 'no idea'}</answer>"
    if name is None:
        return LONG_THOUGHT if "long good" in everything else "<think>Easy.</think>\n<answer>42</answer>"
    if not any("42" in text and "print" not in text and "correct answer" not in text for text in texts[2:]):
        return CODE
    is_hinted = "the correct answer is 42" in texts[1]
    if name in ("hinted", "betrayed") and not is_hinted or name == "never":
        return "<think>Hm.</think>\n<answer>no idea</answer>"
    thought = "The hint says so." if name == "betrayed" else "It prints 42."
    return f"<think>{thought}</think>\n<answer>42</answer>"


@pytest.fixture
def server():
    found = ChatServer(reply, models=("base", "teacher", "judge"))
    yield found
    found.close()


def config(tmp_path, server, *overrides):
    plain = [{"id": name, "question": f"{name}: six times seven?", "answer": "42"} for name in NAMES]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    thoughts = [{"id": name, "question": f"long {name} six times seven?", "answer": "42"} for name in ("good", "stub")]
    (tmp_path / "thoughts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in thoughts))
    return load(
        [
            f"--config.run.root={tmp_path}",
            f"--config.curate.sources=plain={tmp_path}/plain.jsonl;CC0,thoughts={tmp_path}/thoughts.jsonl;CC0;long_cot",
            "--config.curate.stages=read,difficulty,benefit,synthesize,verify,withheld,review,mix",
            "--config.curate.samples=1",
            "--config.curate.attempts=2",
            "--config.curate.hinted_attempts=1",
            f"--config.curate.endpoint={server.url}",
            "--config.curate.endpoint_model=base",
            f"--config.curate.teachers={server.url}#teacher",
            f"--config.curate.reviewer={server.url}#judge",
            *overrides,
        ],
        command="curate",
        default_config="configs/curate.py",
    )


def test_each_row_ends_where_its_teacher_and_judge_send_it(tmp_path, server):
    settings = config(tmp_path, server)
    curate.run(settings)
    output = tmp_path / "curate" / "output"
    lines = {line["id"]: line for line in map(json.loads, (output / "provenance.jsonl").read_text().splitlines())}
    ended = {name: (line["decision"], line["stage"], line["reason"]) for name, line in lines.items()}
    assert ended == {
        "plain/easy": ("cold_start", "", ""),
        "plain/hinted": ("cold_start", "", ""),
        "plain/betrayed": ("dropped", "synthesize", "mentions the hint"),
        "plain/plain": ("cold_start", "", ""),
        "plain/needless": (
            "dropped", "withheld", "the tool did not help: 1 of 1 answers are correct without its output",
        ),
        "plain/irrelevant": ("dropped", "review", "not relevant"),
        "plain/mute": ("dropped", "review", "undecided: the reply has no verdict"),
        "plain/never": ("dropped", "synthesize", "wrong answer"),
        "thoughts/good": ("cold_start", "", ""),
        "thoughts/stub": ("dropped", "synthesize", "1 words of thought, fewer than 20"),
    }  # fmt: skip
    assert lines["plain/hinted"]["teacher"]["hinted"] and not lines["plain/plain"]["teacher"]["hinted"]
    assert lines["plain/plain"]["review"]["denied"] == [] and lines["plain/plain"]["output_withheld"]["n"] == 1
    assert lines["thoughts/good"]["form"] == "long_cot"

    written = json.loads((output / "sft.json").read_text())
    assert len(written) == 4 and "correct answer" not in json.dumps(written), "the hint is in no row of the set"
    (thought,) = [row for row in written if "long good" in row["messages"][0]["content"]]
    assert [message["role"] for message in thought["messages"]] == ["user", "assistant"] and thought["images"] == []
    assert thought["messages"][1]["content"] == LONG_THOUGHT
    asked = [body for body in server.requests if body["model"] == "judge" and "mute: " in text_of(body["messages"][-1])]
    assert len(asked) == 2, "a reply without a verdict is asked for again"
    judged = next(
        body for body in server.requests if body["model"] == "judge" and "plain: " in text_of(body["messages"][-1])
    )
    assert "correct answer is" not in text_of(judged["messages"][-1]), "the judge sees no reference"
    assert "[output]" in text_of(judged["messages"][-1]) and judged["temperature"] == 0.0

    sent = len([body for body in server.requests if "six times" in json.dumps(body["messages"])])
    curate.run(settings)
    assert len([body for body in server.requests if "six times" in json.dumps(body["messages"])]) == sent


def test_a_stage_that_lacks_its_endpoint_says_so(tmp_path, server):
    with pytest.raises(ConfigError, match="curate.reviewer = '': the stage review needs URL#MODEL"):
        curate.run(config(tmp_path, server, "--config.curate.stages=read,review", "--config.curate.reviewer="))
    with pytest.raises(ConfigError, match="the scripted teacher writes no long chains of thought"):
        scripted = ("--config.curate.teachers=scripted", "--config.curate.size=1", "--config.run.name=scripted")
        sources = f"--config.curate.sources=thoughts={tmp_path}/thoughts.jsonl;CC0;long_cot"
        curate.run(config(tmp_path, server, "--config.curate.stages=read,synthesize", sources, *scripted))


@pytest.mark.parametrize(
    "text, failed",
    [
        ('{"relevant": true, "coherent": true, "grounded": true}', ()),
        (
            '```json\n{"relevant": false, "coherent": true, "grounded": false, "reason": "x"}\n```',
            ("relevant", "grounded"),
        ),
        ('<think>{"relevant": false}</think>{"relevant": true, "coherent": true, "grounded": true}', ()),
        ('{"relevant": true, "coherent": true}', None),
        ('{"relevant": "yes", "coherent": true, "grounded": true}', None),
        ("[true, true, true]", None),
        ("Relevant, coherent and grounded.", None),
        ("{", None),
        ("", None),
    ],
)
def test_a_review_has_a_verdict_on_every_quality_or_none(text, failed):
    found = Review.parse(text)
    assert (None if found is None else found.failed) == failed
