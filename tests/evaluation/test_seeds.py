"""Tests the comparison of runs with different seeds."""

import json

import pytest

from dv2_jax.evaluation import seeds


def run(folder, base, cold, rl, **other):
    def row(accuracy):
        return {"accuracy": accuracy, "tool_rate": accuracy / 2, "tool_calls": 1.0, "reward": accuracy}

    stages = {
        name: {"overall": row(a), "plain": row(a)} for name, a in (("base", base), ("cold_start", cold), ("rl", rl))
    }
    folder.mkdir()
    summary = stages | {"logprob_gap_max": 2e-5, "recompilations": 0, "seconds": 600.0, "interrupted": False} | other
    (folder / "summary.json").write_text(json.dumps(summary))
    return str(folder)


def test_medians_and_gains_are_of_each_run(tmp_path, capsys, monkeypatch):
    """Catches a gain taken between medians of different runs: here that would be 20.0, while the median gain is 25.0."""
    monkeypatch.setenv("COLUMNS", "160")
    runs = [
        run(tmp_path / "0", 0.20, 0.50, 0.75),
        run(tmp_path / "1", 0.20, 0.55, 0.70),
        run(tmp_path / "2", 0.21, 0.40, 0.65, logprob_gap_max=3e-5),
    ]
    seeds.main(runs)
    shown = capsys.readouterr().out
    assert "50.0 (40.0 to 55.0)" in shown and "70.0 (65.0 to 75.0)" in shown
    assert "cold start → RL: +25.0 (+15.0 to +25.0) points" in shown
    assert "base → cold start: +30.0 (+19.0 to +35.0) points" in shown
    assert "3.0e-05" in shown and "minutes 10.0" in shown


def test_runs_of_any_checkpoints_compare_also_with_runs_before_0_2(tmp_path, capsys, monkeypatch):
    """Catches: runs refused or mislabeled because each starts from its own checkpoint, or was stored by an older version."""
    monkeypatch.setenv("COLUMNS", "160")
    old = run(tmp_path / "old", 0.20, 0.50, 0.75)
    new = []
    for seed in range(2):
        path = tmp_path / f"new-{seed}"
        run(path, 0.20, 0.40, 0.60)
        summary = json.loads((path / "summary.json").read_text())
        summary["final"], summary["initial"] = summary.pop("rl"), summary.pop("cold_start")
        titles = {"base": "base", "initial": f"sft-{seed}", "final": "RL"}
        summary["stages"] = [{"name": name, "title": title, "init": ""} for name, title in titles.items()]
        (path / "summary.json").write_text(json.dumps(summary))
        new.append(str(path))
    seeds.main([old, *new])
    shown = capsys.readouterr().out
    assert "base → initial: +20.0 (+20.0 to +30.0) points" in shown
    assert "initial → RL: +20.0 (+20.0 to +25.0) points" in shown
    seeds.main(new[:1])
    assert "sft-0 → RL: +20.0 points" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [({"interrupted": True, "steps": 3}, "stopped after step 3"), ({"rl": None}, "different stages")],
)
def test_runs_that_do_not_compare_are_refused(tmp_path, capsys, change, message):
    complete = run(tmp_path / "0", 0.2, 0.5, 0.7)
    other = run(tmp_path / "1", 0.2, 0.5, 0.7)
    path = tmp_path / "1" / "summary.json"
    changed = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))
    with pytest.raises(SystemExit):
        seeds.main([complete, other])
    assert message in capsys.readouterr().err


def test_a_run_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        seeds.main([str(tmp_path / "missing")])
    assert "missing" in capsys.readouterr().err
