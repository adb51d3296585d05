"""Tests of opening a run directory that already holds a run."""

import json
from dataclasses import replace

import jax.numpy as jnp
import pytest

from dv2_jax.checkpoint.store import CheckpointStore
from dv2_jax.config import Config, ConfigError, EvalConfig, OptimConfig, RLConfig, RunConfig, SFTConfig, ToolsConfig
from dv2_jax.recipes.resumption import check_resume
from dv2_jax.recipes.rl import complete_config
from dv2_jax.recipes.run import open_run, write_json


@pytest.fixture
def config(tmp_path):
    data = tmp_path / "questions.jsonl"
    data.write_text('{"prompt": "?"}\n')
    config = Config(
        run=RunConfig(name="x", root=str(tmp_path), tensorboard=False),
        optim=OptimConfig(learning_rate=3e-4),
        rl=RLConfig(algorithm="dapo", group_size=8, steps=10),
    )
    return replace(config, task=replace(config.task, source=str(data)))


def start(config, step=5):
    """Leave a run directory with a checkpoint, as a killed run does."""
    with open_run(complete_config(config), complete_config) as run, CheckpointStore(run.store.directory) as store:
        store.save(step, {"w": jnp.zeros(2)}, {}, {})
    return run.directory


def reopen(config):
    with open_run(complete_config(config), complete_config) as run:
        return run


def test_open_run__another_configuration_is_refused_and_changes_nothing(config):
    """Catches: a run that continues under other hyperparameters, whose config.json then names the wrong ones."""
    directory = start(config)
    files = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    other = replace(config, optim=OptimConfig(learning_rate=1e-2), rl=replace(config.rl, group_size=4))
    with pytest.raises(ConfigError) as error:
        reopen(other)
    message = str(error.value)
    assert "optim.learning_rate = 0.0003 there, 0.01 here" in message and "rl.group_size = 8 there, 4 here" in message
    assert str(directory) in message and "--config.run.name=" in message and "--config.run.resume=false" in message
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == files


def test_open_run__other_data_under_the_same_name_is_refused(config):
    """Catches: a resumed run that trains on other data than its first steps."""
    start(config)
    with open(config.task.source, "a") as file:
        file.write('{"prompt": "!"}\n')
    with pytest.raises(ConfigError, match=r"task\.source = .*sha256"):
        reopen(config)


def test_open_run__settings_that_change_no_step_may_differ(config):
    """Catches: a refusal of more steps, another service address or another checkpoint interval."""
    directory = start(config)
    other = replace(
        config,
        tools=ToolsConfig(address="host:1"),
        rl=replace(config.rl, steps=20, checkpoint_every=3),
        eval=EvalConfig(stages=("final",)),
    )
    run = reopen(other)
    assert run.start == 5 and run.finished is None
    assert json.loads((directory / "config.json").read_text())["rl"]["steps"] == 20


def test_open_run__fewer_steps_than_done_are_refused(config):
    """Catches: a run that is reported as finished at a step that it passed long ago."""
    start(config)
    with pytest.raises(ConfigError, match=r"rl\.steps = 3, but .* has done 5 steps: use at least rl\.steps=5"):
        reopen(replace(config, rl=replace(config.rl, steps=3)))


def test_open_run__a_directory_of_another_recipe_is_refused(config):
    """Catches: an SFT run that continues from the checkpoint of an RL run of the same name."""
    start(config)
    with pytest.raises(ConfigError, match="recipe = 'rl' there, 'sft' here"):
        reopen(replace(config, recipe="sft"))


def test_open_run__a_directory_without_state_takes_any_configuration(config):
    """Catches: a refusal after a run that failed before its first checkpoint."""
    reopen(config)
    other = replace(config, optim=OptimConfig(learning_rate=1e-2))
    assert reopen(other).start == 0


@pytest.mark.parametrize("left", ["data/questions_done", "evaluations/base.json"])
def test_open_run__generated_data_and_evaluations_count_as_state(config, left):
    """Catches: training data or an evaluation of one configuration that another one silently reuses."""
    directory = reopen(config).directory
    (directory / left).parent.mkdir()
    (directory / left).write_text("64")
    with pytest.raises(ConfigError, match="learning_rate"):
        reopen(replace(config, optim=OptimConfig(learning_rate=1e-2)))


@pytest.mark.parametrize(
    ("summary", "changes", "finished"),
    [
        ({"interrupted": False, "steps": 5}, {}, True),
        ({"interrupted": True, "steps": 5}, {}, False),
        ({"interrupted": False, "steps": 5}, {"eval": EvalConfig(stages=("final",))}, False),
        ({"interrupted": False, "steps": 5}, {"rl": RLConfig(steps=6)}, False),
        (None, {}, False),
    ],
)
def test_open_run__a_finished_run_is_recognized(config, summary, changes, finished):
    """Catches: a finished run that is trained or compiled again, and an extended one that is not."""
    config = replace(config, rl=RLConfig(steps=5))
    directory = start(config)
    if summary is not None:
        write_json(directory / "summary.json", summary)
    assert (reopen(replace(config, **changes)).finished is not None) is finished


def test_check_resume__a_run_without_config_is_continued_with_a_warning(config):
    """Catches: a silent continuation where nothing can be compared."""
    directory = start(config)
    (directory / "config.json").unlink()
    resumption = check_resume(directory, complete_config(config), complete_config)
    assert [note.startswith("WARNING") for note in resumption.notes] == [True]


def test_check_resume__an_empty_checkpoint_folder_is_no_progress(config):
    """Catches: an empty folder `checkpoints/99` that makes the run look further than it is."""
    directory = start(config)
    (directory / "checkpoints" / "99").mkdir()
    check_resume(directory, complete_config(config), complete_config)


def test_open_run__sft_ignores_fields_that_only_rl_reads(config):
    """Catches: an SFT run that is refused because a default of RL changed between versions."""
    sft = replace(config, recipe="sft", sft=SFTConfig(steps=7))
    with open_run(sft) as run, CheckpointStore(run.store.directory) as store:
        store.save(5, {"w": jnp.zeros(2)}, {}, {})
    with open_run(replace(sft, rl=RLConfig(group_size=99))) as run:
        assert run.start == 5
