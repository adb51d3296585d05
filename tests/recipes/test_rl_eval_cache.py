"""Tests of the evaluations that a resumed RL run reuses."""

import json
from types import SimpleNamespace

import pytest

from dv2_jax.config import Config, RLConfig
from dv2_jax.recipes.rl_eval import FINAL, StageEvaluator


@pytest.mark.parametrize(("start", "evaluated"), [(5, []), (3, [FINAL]), (0, [FINAL])])
def test_evaluate_final__is_repeated_after_further_steps(tmp_path, monkeypatch, start, evaluated):
    """Catches: a run that is extended from 3 to 5 steps and reports the evaluation of step 3 as its result."""
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / f"{FINAL}.json").write_text(json.dumps({"overall": {}}))
    run = SimpleNamespace(config=Config(rl=RLConfig(steps=5)), directory=tmp_path, start=start)
    stages = StageEvaluator(run, None, None, None)
    calls = []
    monkeypatch.setattr(stages, "_evaluate", lambda stage, params, version: calls.append(stage.name))
    stages.evaluate_final({})
    assert calls == evaluated


def test_evaluations_stored_before_0_2_are_read(tmp_path, monkeypatch):
    """Catches: a run of an older version whose evaluations are repeated, or reported under names that nothing reads."""
    (tmp_path / "evaluations").mkdir()
    results = {name: {"overall": {"accuracy": value}} for name, value in (("cold_start", 0.2), ("rl", 0.3))}
    for name, result in results.items():
        (tmp_path / "evaluations" / f"{name}.json").write_text(json.dumps(result))
    run = SimpleNamespace(config=Config(rl=RLConfig(steps=5)), directory=tmp_path, start=5)
    stages = StageEvaluator(run, None, None, None)
    monkeypatch.setattr(stages, "_evaluate", None)
    stages.evaluate_initial({}, at_start=False)
    stages.evaluate_final({})
    summary = stages.summary()
    assert summary["initial"] == results["cold_start"] and summary["final"] == results["rl"] and stages.complete
    assert [stage["title"] for stage in summary["stages"]] == ["cold start", "RL"]
