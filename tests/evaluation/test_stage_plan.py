"""Tests which policies a run evaluates, and under which names."""

from dataclasses import replace

import pytest

from dv2_jax.checkpoint.policy_spec import init_name
from dv2_jax.config import Config, ConfigError, EvalConfig, ModelSource, load
from dv2_jax.evaluation.stage_plan import check_comparable, evaluation_stages, rl_stages
from dv2_jax.policy import load_policy


def config_of(init: str, *compare: str, stages=("initial", "final")) -> Config:
    return Config(model=ModelSource(init=init), eval=EvalConfig(stages=stages, compare=compare))


def shown(stages) -> list[tuple[str, str, str]]:
    return [(stage.name, stage.title, stage.init) for stage in stages]


def test_the_default_run_compares_base_cold_start_and_rl():
    """Catches: a default run that no longer ends with the comparison that the README shows."""
    assert [stage.title for stage in rl_stages(load(["--config=configs/rl.py"]))] == ["base", "cold start", "RL"]


@pytest.mark.parametrize(
    ("init", "title"),
    [
        ("package:cold_start", "cold start"),
        ("package:base", "base"),
        ("random", "random"),
        ("hf:/models/Qwen2.5-VL-7B-Instruct/", "Qwen2.5-VL-7B-Instruct"),
        ("checkpoint:runs/sft-smol", "sft-smol"),
        ("checkpoint:runs/rl/checkpoints/50", "rl-50"),
        ("hf:/", "hf"),
    ],
)
def test_rl_from_any_policy_is_reported_as_what_it_is(init, title):
    """Catches: RL from another model that is reported as "cold start"."""
    assert init_name(init) == title
    assert shown(rl_stages(config_of(init))) == [("initial", title, init), ("final", "RL", init)]


def test_a_policy_is_not_evaluated_twice():
    """Catches: an initial policy that is listed again because it is compared with."""
    assert shown(rl_stages(config_of("package:base", "package:base"))) == [
        ("initial", "base", "package:base"),
        ("final", "RL", "package:base"),
    ]
    only_final = config_of("package:base", "package:base", "package:base", stages=("final",))
    assert [stage.name for stage in rl_stages(only_final)] == ["base", "final"]
    assert [stage.name for stage in evaluation_stages(config_of("package:base", "package:base"))] == ["evaluate"]


def test_compared_policies_have_distinct_names_that_are_file_names():
    """Catches: results of two policies in one file, and a result that replaces that of the run's own policy."""
    config = config_of("hf:/a/model", "hf:/b/model", "hf:/c/model", "hf:/d/train", "checkpoint:runs/final", "hf:/ä b")
    stages = rl_stages(config)
    names, titles = [stage.name for stage in stages], [stage.title for stage in stages]
    assert len(set(names)) == len(set(titles)) == len(stages) == 7
    assert titles[:2] == ["model-2", "model-3"] and "train" not in names and names[-2:] == ["initial", "final"]
    assert all(name.isascii() and "/" not in name and " " not in name for name in names)


def test_the_evaluated_policy_comes_last():
    """Catches: a table in another order than that of training."""
    config = config_of("checkpoint:runs/rl", "package:base", "package:cold_start")
    assert [stage.title for stage in evaluation_stages(config)] == ["base", "cold start", "rl"]
    assert [stage.title for stage in evaluation_stages(config_of("checkpoint:runs/rl"))] == ["result"]


def test_an_unknown_stage_is_refused_with_the_fix():
    """Catches: a name of the paper's stages, which were configured here before 0.2, that is silently ignored."""
    with pytest.raises(ConfigError, match=r"eval.stages = \['base'\].*--config.eval.compare=package:base"):
        rl_stages(config_of("package:cold_start", stages=("base", "final")))


def test_policies_that_one_engine_cannot_evaluate_are_refused(tmp_path):
    """Catches: weights of another architecture, or ids of another tokenizer, that fail or mislead after minutes."""
    policy = load_policy(Config(model=ModelSource(init="random")))
    check_comparable(policy, rl_stages(config_of("random", "package:base", "package:cold_start")))
    with pytest.raises(ConfigError, match="eval.compare = 'hf:/missing'"):
        check_comparable(policy, rl_stages(config_of("random", "hf:/missing")))

    larger = replace(policy.spec, config=replace(policy.config, text=replace(policy.config.text, num_layers=7)))
    larger.save(tmp_path / "larger")
    with pytest.raises(ConfigError, match="its architecture is not that of model.init = 'random'"):
        check_comparable(policy, rl_stages(config_of("random", f"checkpoint:{tmp_path}/larger")))

    other = tmp_path / "tokenizer.json"
    other.write_bytes(policy.spec.tokenizer_file.read_bytes() + b"\n")
    replace(policy.spec, tokenizer_file=other).save(tmp_path / "other")
    with pytest.raises(ConfigError, match="its tokenizer is not that of model.init"):
        check_comparable(policy, rl_stages(config_of("random", f"checkpoint:{tmp_path}/other")))
