"""Tests of the commands' exit codes when the judge cannot be used or stops giving verdicts."""

from dataclasses import replace

import pytest

from dv2_jax import evaluate
from dv2_jax.config import Config, ConfigError, RewardConfig, run_command
from dv2_jax.recipes import rl
from dv2_jax.rewards import JudgeOutage

CLOSED = "http://127.0.0.1:1/v1"  # nothing listens there


def test_evaluate_fails_at_once_with_one_sentence(tmp_path, capsys):
    """Catches: an evaluation without a judge that answers every question first."""
    arguments = [f"--config.reward.judge_base_url={CLOSED}", f"--config.run.root={tmp_path}"]
    with pytest.raises(SystemExit) as ended:
        run_command(evaluate.run, arguments, command="evaluate", default_config="configs/evaluate.py")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: reward.judge_base_url = {CLOSED}: no connection to the judge")
    assert not list(tmp_path.iterdir())


def test_rl_fails_before_it_loads_a_policy(tmp_path):
    config = Config(reward=RewardConfig(judge_base_url=CLOSED))
    with pytest.raises(ConfigError, match="no connection to the judge"):
        rl.run_rl(replace(config, run=replace(config.run, root=str(tmp_path))))
    assert not list(tmp_path.iterdir())


def test_an_outage_ends_the_command_with_code_1_and_one_sentence(capsys):
    """Catches: a stack trace, or exit code 0."""

    def run(config):
        raise JudgeOutage("the judge has given no verdict for 300 s")

    with pytest.raises(SystemExit) as ended:
        run_command(run, [], command="evaluate", default_config="configs/evaluate.py")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: the judge has given no verdict for 300 s\n"


def test_an_outage_on_one_host_ends_all_of_them(two_processes):
    """Catches: a host that waits in a collective for one that has stopped."""
    program = """
import json
from dv2_jax.parallel import distributed
distributed.initialize()
from dv2_jax.parallel.outage import ServiceOutage, raise_outage_together
from dv2_jax.rewards import JudgeOutage
seen = []
for failing in (None, 1):
    try:
        with raise_outage_together():
            if distributed.process_index() == failing:
                raise JudgeOutage("my judge is silent")
        seen.append("")
    except ServiceOutage as error:
        seen.append(str(error))
print(json.dumps(seen))
"""
    first, second = two_processes(program)
    assert first == ["", "another host of the run has an outage of the judge or of the tools service"]
    assert second == ["", "my judge is silent"]
