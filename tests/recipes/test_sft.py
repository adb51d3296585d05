"""Tests of the SFT recipe: data sources, resuming and interrupts."""

import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from dv2_jax.agent.observation import Observation
from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.agent.trajectory_builder import TrajectoryBuilder
from dv2_jax.checkpoint.policy_spec import load_policy_spec
from dv2_jax.checkpoint.store import CheckpointStore
from dv2_jax.config import Config, ConfigError, ImageConfig, ModelSource, OptimConfig, RunConfig, SFTConfig
from dv2_jax.data.chat_encoder import ChatEncoder
from dv2_jax.data.faults import RowError
from dv2_jax.data.question import Question
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.policy import load_policy
from dv2_jax.recipes import run as run_module
from dv2_jax.recipes import sft, sft_data
from dv2_jax.telemetry.metrics_writer import read_metrics
from dv2_jax.trainer.optimizer import make_optimizer_bundle
from dv2_jax.trainer.state import abstract_state
from tools_service.common.status import Status


def png(seed, size=(60, 40)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    """Write thirty conversations, most with an image; one is too long for a row. Returns the path."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i in range(30):
        (folder / f"{i}.png").write_bytes(png(i % 5))
        mark = "<image>" if i % 4 else ""
        messages = [
            {"role": "system", "content": "Answer."},
            {"role": "user", "content": f"{mark}What is {i} + 1?" + " very" * (400 if i == 7 else i)},
            {"role": "assistant", "content": f"<think>Easy.</think>\n<answer>{i + 1}</answer>"},
        ]
        rows.append({"messages": messages, "images": [f"{i}.png"] if mark else []})
    path = folder / "rows.json"
    path.write_text(json.dumps(rows))
    return str(path)


def one_layer_policy(config):
    """Return the policy of `config` with one text layer, so that it compiles quickly."""
    found = load_policy_spec(config.model)
    text = replace(found.config.text, num_layers=1)
    return load_policy(config, spec=replace(found, config=replace(found.config, text=text)))


def run_sft(config):
    return sft.run_sft(config, one_layer_policy(config))


@pytest.fixture
def config(conversations, tmp_path):
    return Config(
        recipe="sft",
        run=RunConfig(name="sft", root=str(tmp_path), tensorboard=False),
        model=ModelSource(init="random"),
        image=ImageConfig(max_pixels=56 * 56),
        optim=OptimConfig(learning_rate=3e-3),
        sft=SFTConfig(steps=6, batch_rows=2, row_tokens=192, microbatches=2, data=conversations, checkpoint_every=4),
    )


def weights(config):
    policy = one_layer_policy(config)
    bundle = make_optimizer_bundle(config, policy.logical_axes, config.sft.steps)
    abstract = abstract_state(policy.params, bundle.optimizer, bundle.trainable)
    with CheckpointStore(f"{config.run.root}/{config.run.name}/checkpoints") as store:
        found = store.restore(abstract.params, abstract.opt_state)
    return found.step, jax.tree.map(np.asarray, (found.params, found.opt_state))


def test_a_killed_run_continues_bit_for_bit(config, capsys):
    """Catches: data repeated or skipped on resume, lost moments or schedule step, metrics written twice."""
    summary = run_sft(config)
    step, expected = weights(config)
    rows = read_metrics(f"{config.run.root}/sft")
    assert step == summary["steps"] == 6 and not summary["interrupted"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["recompilations"] == 0 and rows[-1]["loss"] < rows[0]["loss"]
    shown = capsys.readouterr().out
    assert "rows.json row 7" in shown and "left out: 1 row of" in shown and summary["rows_failed"] == 0

    # Killed after step 5: the newest checkpoint is of step 4; step 5 was logged and is repeated.
    killed = replace(config, run=replace(config.run, name="killed"))

    class Killed(BaseException):
        pass

    def die(step, *_):
        if step == 5:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        written = run_module.MetricsWriter.write
        patch.setattr(
            run_module.MetricsWriter, "write", lambda self, step, values: (written(self, step, values), die(step))
        )
        with pytest.raises(Killed):
            run_sft(killed)
    run_sft(killed)
    step, found = weights(killed)
    assert step == 6
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    again = read_metrics(f"{config.run.root}/killed")
    assert [row["loss"] for row in again] == [row["loss"] for row in rows]


def test_a_row_that_fails_at_run_time_is_skipped_and_counted(config, monkeypatch, capsys):
    """Catches a row that passes the check, fails in the background thread and ends the run; a loop over such rows."""
    original = sft_data.encode_conversation

    def encode(messages, images, encoder, *, example_id):
        if example_id == "rows:5":
            raise ValueError("its image is gone")
        return original(messages, images, encoder, example_id=example_id)

    monkeypatch.setattr(sft_data, "encode_conversation", encode)
    summary = run_sft(replace(config, sft=replace(config.sft, steps=3)))
    assert summary["steps"] == 3 and summary["rows_failed"] == 1
    assert capsys.readouterr().out.count("skipped: rows:5: its image is gone") == 1
    monkeypatch.setattr(sft_data, "encode_conversation", lambda *a, **k: encode(*a, example_id="rows:5"))
    with pytest.raises(RowError, match="nothing to train on"):
        run_sft(replace(config, run=replace(config.run, name="none")))


def test_an_interrupt_saves_after_the_step_and_the_same_command_resumes(config):
    """Catches: Ctrl-C that loses the run, or a checkpoint whose data iterator state is of another step."""
    plain = replace(config, run=replace(config.run, name="plain"), sft=replace(config.sft, steps=3))
    run_sft(plain)
    stopped = replace(plain, run=replace(plain.run, name="stopped"))
    with pytest.MonkeyPatch.context() as patch:
        written = run_module.MetricsWriter.write

        def write_and_interrupt(self, step, values):
            written(self, step, values)
            if step == 2:
                os.kill(os.getpid(), signal.SIGINT)

        patch.setattr(run_module.MetricsWriter, "write", write_and_interrupt)
        summary = run_sft(stopped)
    assert summary["interrupted"] and summary["steps"] == 2
    assert not run_sft(stopped)["interrupted"]
    jax.tree.map(np.testing.assert_array_equal, weights(stopped)[1], weights(plain)[1])
    with pytest.raises(ConfigError, match="run.resume is off"):
        run_sft(replace(stopped, run=replace(stopped.run, resume=False)))


def test_stored_trajectories_encode_to_the_rollout_tokens_and_images(config, tmp_path):
    """Catches: a mask, token id or image that differs between a trajectory and the example encoded from its record."""
    tokenizer = Tokenizer.from_package()
    prompt_encoder = PromptEncoder(tokenizer, config.image, config.agent)
    made = []
    for i in range(5):
        builder = TrajectoryBuilder(
            prompt_encoder, Question(f"q{i}", "perception", "perception", "Which digit?", (png(i),), "7")
        )
        builder.append_scripted_turn("<think>I zoom.</think>\n<code>\n```python\ndisplay(image_1)\n```\n</code>")
        builder.append_observation(
            Observation("Code execution result:\n<image>", (png(10 + i, (30, 30)),)), status=Status.OK
        )
        builder.append_scripted_turn("Seen.</think>\n<answer>7</answer>")
        made.append(builder.trajectory())
    calls = []

    def solve(questions, seed):
        calls.append((len(questions), seed))
        return [t for t in made if t.question in questions]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft_data, "QUESTIONS_PER_WRITE", 2)
        questions = [t.question for t in made]
        sft_data.generate_trajectories(solve, questions[:3], tmp_path / "data", tokenizer, seed=5)
        sft_data.generate_trajectories(solve, questions, tmp_path / "data", tokenizer, seed=5)
    assert calls == [(2, 5), (1, 7), (2, 8)]
    stored = sft_data.stored_trajectories(tmp_path / "data")
    encode = sft_data.from_trajectory(ChatEncoder(tokenizer, config.image, ()))
    for record, trajectory in zip(stored, made, strict=True):
        example = encode(record)
        assert list(example.token_ids) == trajectory.token_ids
        assert list(example.loss_weight) == trajectory.loss_mask
        assert [p.digest for p in example.images] == [p.digest for p in trajectory.images]
        np.testing.assert_array_equal(example.images[1].patches, trajectory.images[1].patches)


@pytest.mark.long
def test_a_damaged_checkpoint_continues_from_the_one_before_it(config, capsys):
    """Catches: a run that stops at, or silently skips, a damaged checkpoint; steps that are trained or logged twice."""
    steady = replace(config, optim=OptimConfig(schedule="constant", warmup_ratio=0.0))
    plain, damaged = (
        replace(steady, run=replace(config.run, name=name), sft=replace(config.sft, steps=3, checkpoint_every=1))
        for name in ("plain", "damaged")
    )
    run_sft(plain)
    run_sft(replace(damaged, sft=replace(damaged.sft, steps=2)))
    newest = Path(config.run.root) / "damaged" / "checkpoints" / "2"
    os.truncate(max(newest.glob("params/**/d/*"), key=lambda path: path.stat().st_size), 100)
    capsys.readouterr()
    assert run_sft(damaged)["steps"] == 3
    printed = capsys.readouterr().out
    assert "WARNING: checkpoint" in printed and "resuming" in printed and "after step 1" in printed
    assert newest.with_name("2.damaged").is_dir()
    jax.tree.map(np.testing.assert_array_equal, weights(damaged)[1], weights(plain)[1])
    rows, expected = (read_metrics(f"{config.run.root}/{name}") for name in ("damaged", "plain"))
    assert [(row["step"], row["loss"]) for row in rows] == [(row["step"], row["loss"]) for row in expected]


def test_a_finished_run_says_so_and_another_configuration_is_refused(config, capsys):
    """Catches: a finished run whose provenance a second command rewrites, or that trains again."""
    short = replace(config, sft=replace(config.sft, steps=1))
    summary = run_sft(short)
    training = (Path(config.run.root) / "sft" / "training.json").read_bytes()
    capsys.readouterr()
    assert run_sft(short) == json.loads(json.dumps(summary))
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"optim\.learning_rate = 0\.003 there, 0\.1 here"):
        run_sft(replace(short, optim=OptimConfig(learning_rate=0.1)))
    assert (Path(config.run.root) / "sft" / "training.json").read_bytes() == training
