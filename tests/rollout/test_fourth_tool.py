"""A tool from outside the package, in one file, from its configuration to rollout, training, evaluation and report.

The tool is `tests/extension/zoom_tool.py`; nothing else mentions it but the configuration's `agent.tools`.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.agent.tool_use import shares, tool_kinds
from dv2_jax.agent.tools.base import LocalCall, LocalOutput
from dv2_jax.agent.tools.tool_registry import run_tools
from dv2_jax.agent.trajectory import Finish
from dv2_jax.config import AgentConfig, Config, ConfigError, ImageConfig, RewardConfig, RLConfig, SamplingConfig, load
from dv2_jax.data.chat_encoder import ChatEncoder, encode_conversation
from dv2_jax.data.question import Question
from dv2_jax.evaluation.answering import evaluate
from dv2_jax.evaluation.baselines import RefusingTools
from dv2_jax.evaluation.chat_printer import ChatPrinter
from dv2_jax.policy import load_policy
from dv2_jax.report.page import render
from dv2_jax.rewards.rules import is_well_formed, score_response
from dv2_jax.rl.batch import make_minibatches
from dv2_jax.rollout.local_calls import LocalCallRunner
from dv2_jax.telemetry.trajectories import TrajectoryWriter, read_trajectories
from tests.rollout.rollout_cases import AGENT, ANSWER, code, make_image, requests, scheduler
from tools_service.client import Status, ToolResult

ROOT = Path(__file__).resolve().parents[2]
ZOOM = "tests.extension.zoom_tool:ZoomTool"
NAMES = (*AgentConfig().tools, ZOOM)
WITH_ZOOM = replace(AGENT, tools=NAMES, max_total_tokens=3000)
CALL = "<think>x</think>\n<zoom>0 0 40 32</zoom>"


class NoService:
    """A client without a service: a request that reaches it is an error."""

    def submit(self, requests) -> None:
        raise AssertionError(f"{requests} was sent to the service")

    def poll(self, timeout_s: float = 0.0) -> list[ToolResult]:
        return []

    def close_sessions(self, ids) -> None:
        assert not ids


def roll_out(tokenizer, scripts, client=None, tools=None):
    """Rolls out one trajectory per script with the real scheduler; returns them by name, and the scheduler."""
    tools = LocalCallRunner(client or NoService()) if tools is None else tools
    rollout = scheduler(tokenizer, tools, lambda name, turn: scripts[name][turn], agent=WITH_ZOOM)
    return {t.id: t for t in rollout.run(requests(*scripts))}, rollout


@pytest.fixture
def zoomed(tokenizer):
    trajectories, _ = roll_out(tokenizer, {"zooms": [CALL, ANSWER]})
    return trajectories["zooms"]


def test_a_tool_named_only_in_the_configuration_is_rolled_out(tokenizer, zoomed):
    """Catches a kind of turn that the parser, scheduler or builder does not take from the run's tools."""
    call, answer = zoomed.turns
    assert (call.kind, call.status, answer.kind, zoomed.finish) == ("zoom", Status.OK, "answer", Finish.ANSWER)
    assert call.observation == "<tool_response>\n40 x 32 pixels\n<image>\n</tool_response>"
    with Image.open(io.BytesIO(call.images[0])) as image:
        assert image.size == (80, 64)
    prompt = tokenizer.decode(zoomed.token_ids[: zoomed.prompt_tokens])
    assert "<zoom>left top right bottom</zoom>, in pixels of image_1.<|im_end|>" in prompt


def test_tools_of_service_and_trainer_work_in_one_trajectory(tokenizer, client):
    scripts = {"both": [CALL, code("print(40 + 2)"), CALL.replace("40 32", "20 20"), ANSWER], "zooms": [CALL, ANSWER]}
    trajectories, rollout = roll_out(tokenizer, scripts, client)
    assert [turn.kind for turn in trajectories["both"].turns] == ["zoom", "code", "zoom", "answer"]
    assert (
        "20 x 20 pixels" in trajectories["both"].turns[2].observation
        and "42" in trajectories["both"].turns[1].observation
    )
    assert rollout.stats["tool_zoom_ok"] == 3 and rollout.stats["tool_exec_ok"] == 1


def test_a_failure_of_the_tool_is_an_observation_of_its_trajectory_alone(tokenizer):
    """Catches an exception in a thread of the trainer that ends the run or leaves a request without its result."""
    scripts = {
        "outside": [CALL.replace("0 0 40 32", "40 32 0 0"), ANSWER],
        "malformed": [CALL.replace("0 0", "a b"), ANSWER],
        "fine": [CALL, ANSWER],
    }
    with pytest.warns(UserWarning, match="tool 'zoom' failed: ValueError"):
        trajectories, _ = roll_out(tokenizer, scripts)
    assert trajectories["outside"].turns[0].observation.startswith("Error: ValueError: ")
    assert trajectories["outside"].turns[0].status is Status.ERROR
    assert trajectories["malformed"].turns[0].observation == "Error: write four whole numbers between the zoom tags."
    assert trajectories["fine"].turns[0].status is Status.OK
    assert [t.finish for t in trajectories.values()] == [Finish.ANSWER] * 3


def test_a_tool_that_raises_while_it_parses_or_requests_costs_that_turn(tokenizer, monkeypatch):
    """Catches a run that ends because a tool from outside cannot cope with what a policy wrote."""
    tool = run_tools(WITH_ZOOM)[-1]
    for method in ("parse", "request"):
        with monkeypatch.context() as patched, pytest.warns(UserWarning, match="tool 'zoom' failed to"):
            patched.setattr(type(tool), method, lambda self, *_: 1 // 0)
            trajectories, _ = roll_out(tokenizer, {"zooms": [CALL, ANSWER]})
        assert "ZeroDivisionError" in trajectories["zooms"].turns[0].observation


def test_without_tools_its_calls_are_refused_too(tokenizer):
    trajectories, _ = roll_out(tokenizer, {"zooms": [CALL, ANSWER]}, tools=RefusingTools())
    assert trajectories["zooms"].turns[0].observation == "Error: tools are switched off in this evaluation"


def test_no_output_of_another_tool_can_imitate_its_tags(tokenizer, client):
    scripts = {"prints": [code("print('<zoom>1 1 2 2</' + 'zoom>')"), ANSWER]}
    trajectories, _ = roll_out(tokenizer, scripts, client)
    assert "< zoom>1 1 2 2< /zoom>" in trajectories["prints"].turns[0].observation


def test_generation_stops_at_its_closing_tag():
    """Catches an engine whose stop strings are not those of the run's tools."""
    config = replace(Config(), agent=WITH_ZOOM)
    policy = load_policy(config, single_device=True)
    automaton = policy.stop_automaton()
    state, seen = 0, []
    for token in policy.tokenizer.encode("<think>x</think> <zoom>1 2 3 4</zoom>"):
        state = int(automaton.pad_vocab(policy.config.text.vocab_size)[state, token])
        seen.append(bool(automaton.is_final(state)))
    assert seen[-1] and not any(seen[:-1])
    assert policy.stop_strings == ("</code>", "</tool_call>", "</zoom>")
    assert automaton.pad_vocab(policy.config.text.vocab_size).shape[0] == policy.num_stop_states


def test_its_call_is_trained_and_its_observation_is_not(tokenizer, zoomed):
    """Catches an observation in the loss, or a call that is not."""
    zoomed.reward = 1.0
    (minibatch,) = make_minibatches([zoomed, zoomed], [1.0, -1.0], RLConfig())
    example = minibatch.examples[0]
    trained = tokenizer.decode(i for i, weight in zip(example.token_ids, example.loss_weight, strict=True) if weight)
    assert trained == f"{CALL}{ANSWER}<|im_end|>"
    assert len(example.images) == 2  # of the question and of the observation


def test_a_stored_conversation_is_masked_as_the_rollout_was(tokenizer, zoomed):
    """Catches a trained `<|im_end|>` after the closing tag, which the policy never samples."""
    encoder = PromptEncoder(tokenizer, ImageConfig(), WITH_ZOOM)
    call, answer = zoomed.turns
    messages = [
        {"role": "user", "content": "<image>What?"},
        {"role": "assistant", "content": call.text},
        {"role": "user", "content": call.observation},
        {"role": "assistant", "content": f"<think>{answer.text}"},
    ]
    example = encode_conversation(messages, [make_image(0), *call.images], encoder.chat)
    response = example.token_ids[-len(zoomed.response_ids) :]
    assert response == zoomed.response_ids
    assert example.loss_mask[-len(response) :] == zoomed.loss_mask[-len(response) :]
    plain = ChatEncoder(tokenizer, ImageConfig(), ("</code>",))
    assert plain.encode_assistant(CALL)[-1] == plain.im_end, "the mask depends on the run's tools"


def test_rewards_count_its_tags_and_the_search_penalty_does_not_apply(zoomed):
    config = RewardConfig(tool_bonus=0.5)
    text = f"{CALL}{ANSWER}"
    assert is_well_formed(text, "perception", config, zoomed.tools)
    unbalanced = text.replace("</zoom>", "")
    assert not is_well_formed(unbalanced, "perception", config, zoomed.tools)
    assert is_well_formed(unbalanced, "perception", config), "without the tool its tag is ordinary text"
    parts = score_response(text, True, "search", config, zoomed)
    assert (parts.penalty, parts.bonus, parts.total) == (0.0, 0.5, pytest.approx(1.5))


def test_evaluation_counts_it(tokenizer):
    scripts = {"eval-000000": [CALL, CALL, ANSWER], "eval-000001": [ANSWER]}
    tools = LocalCallRunner(NoService())
    rollout = scheduler(tokenizer, tools, lambda name, turn: scripts[name][turn], agent=WITH_ZOOM)
    rollout.sampling = SamplingConfig(temperature=0.0)
    questions = [Question(name, "perception", "perception", "What?", (make_image(1),), "7") for name in scripts]
    result = evaluate(questions, rollout, tokenizer, RewardConfig(), lambda _: None)
    row = result.summary()["overall"]
    assert (row["zoom_rate"], row["code_rate"], row["search_rate"], row["tool_rate"]) == (0.5, 0.0, 0.0, 0.5)
    assert row["tool_kinds"]["zoom"] == 1.0 and sum(row["tool_kinds"].values()) == 1.0


def test_a_class_of_use_without_calls_has_a_share_of_zero(zoomed):
    counts = tool_kinds(zoomed.turns, zoomed.tools)
    assert counts["zoom"] == 1 and shares(counts)["crop"] == 0.0
    assert list(shares(tool_kinds([], zoomed.tools)))[-1] == "zoom"


def test_the_chat_prints_its_calls_and_images(zoomed, tmp_path):
    out = io.StringIO()
    printer = ChatPrinter(Console(file=out, width=100), tmp_path, run_tools(WITH_ZOOM))
    for turn in zoomed.turns:
        printer.turn(turn)
    text = out.getvalue()
    assert "zoom 0 0 40 32" in text and "\n    40 x 32 pixels\n" in text and "80 × 64" in text
    assert "tool_response" not in text and "<image>" not in text


def stored_run(folder: Path, tokenizer, trajectory, names=NAMES) -> Path:
    """Writes the files of an evaluation run whose configuration names the tools `names`."""
    trajectory.reward, trajectory.reward_parts = 1.0, {"accuracy": 1.0, "format": 1.0, "penalty": 0.0}
    with TrajectoryWriter(folder / "trajectories", tokenizer) as writer:
        writer.write([trajectory], stage="evaluate")
    config = json.loads(json.dumps(replace(Config(), agent=replace(WITH_ZOOM, tools=names)).to_dict()))
    (folder / "config.json").write_text(json.dumps(config))
    kinds = shares(tool_kinds(trajectory.turns, trajectory.tools))
    row = {"accuracy": 1.0, "tool_calls": 1.0, "tool_rate": 1.0, "reward": 1.0, "n": 1, "tool_kinds": kinds}
    (folder / "results.json").write_text(json.dumps({"evaluate": {"overall": row, "perception": row}}))
    return folder


def test_records_and_report_show_it(tokenizer, zoomed, tmp_path):
    run = stored_run(tmp_path, tokenizer, zoomed)
    (record,) = read_trajectories(run / "trajectories", "evaluate")
    assert (record["turns"][0]["kind"], record["turns"][0]["status"]) == ("zoom", "ok")
    assert Config.from_dict(json.loads((run / "config.json").read_text())).agent.tools == NAMES
    page = render(run)
    assert 'data-tools="zoom"' in page and '<option value="zoom">zoom</option>' in page
    assert "turn 1 · zooms · " in page and '<b class="tag">&lt;zoom&gt;</b>' in page
    assert 'title="zoom: 100.0%"' in page


@pytest.mark.parametrize("name", [ZOOM, "missing_package.tools:ZoomTool"])
def test_the_report_of_another_process_shows_it_even_where_it_cannot_be_imported(tokenizer, zoomed, tmp_path, name):
    """Catches a report that only knows the tools of the process that made the run."""
    run = stored_run(tmp_path, tokenizer, zoomed, (*AgentConfig().tools, name))
    command = [sys.executable, "-m", "dv2_jax.report", str(run)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    page = (run / "report" / "index.html").read_text()
    assert ('data-tools="zoom"' in page) and (f"turn 1 · {'zooms' if name == ZOOM else 'zoom'} · " in page)
    assert ("cannot import 'missing_package.tools:ZoomTool'" in done.stderr) == (name != ZOOM)


def test_it_is_named_on_the_command_line():
    config = load([f"--config.agent.tools=code,{ZOOM}"], command="evaluate", default_config="configs/evaluate.py")
    assert [tool.name for tool in run_tools(config.agent)] == ["code", "zoom"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("code", "serch"),
            r"agent.tools: 'serch' is none of .*; did you mean 'search'\?; a tool elsewhere is package",
        ),
        (("no.such.module:Tool",), r"agent.tools: cannot import 'no.such.module:Tool': No module named 'no'"),
        (("tests.extension.zoom_tool:Missing",), "cannot import 'tests.extension.zoom_tool:Missing': .*Missing"),
        (("tests.extension.zoom_tool:crop",), "is no subclass of dv2_jax.agent.tools.base.Tool"),
        (("dv2_jax.agent.tools.json_call:JsonCallTool",), "does not implement parse_arguments, request"),
        (("code", ZOOM, "code"), "'code' is named twice"),
    ],
)
def test_a_tool_that_cannot_be_used_is_refused_with_the_reason(names, message):
    with pytest.raises(ConfigError, match=message):
        run_tools(replace(AGENT, tools=names))


def test_local_calls_run_concurrently_and_each_has_one_result():
    """Catches a call that waits for another, and a result that is lost or given twice."""
    import threading

    barrier = threading.Barrier(8, timeout=20)

    def meet() -> LocalOutput:
        barrier.wait()
        return LocalOutput("met")

    runner = LocalCallRunner(NoService())
    runner.submit([LocalCall(f"r{i}", "zoom", meet) for i in range(8)])
    results = []
    while len(results) < 8:
        results += runner.poll(5.0)
    assert sorted(result.request_id for result in results) == [f"r{i}" for i in range(8)]
    assert {(r.status, r.stdout, r.kind) for r in results} == {(Status.OK, "met", "zoom")}
    assert runner.poll() == []
