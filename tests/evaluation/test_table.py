import io

import pytest
from rich.console import Console

from dv2_jax.evaluation.table import print_comparison, print_scores


def _row(accuracy: float) -> dict:
    return {"accuracy": accuracy, "tool_rate": 0.5, "tool_calls": 1.25, "reward": 0.75}


@pytest.mark.parametrize("width", [70, 160])
def test_the_table_shows_every_number_at_any_width(width):
    """Catches columns that a narrow terminal cuts off, and a stage that lacks a skill."""
    stages = {
        "base": {"overall": _row(0.011), "plain": _row(0.022)},
        "cold_start": {"overall": _row(0.333), "plain": _row(0.444), "search": _row(0.555)},
        "rl": {"overall": _row(0.666), "plain": _row(0.777), "search": _row(0.888)},
        "guessing": {"overall": 0.5},
        "seconds": 12.0,
    }
    out = io.StringIO()
    print_comparison(stages, console=Console(file=out, width=width))
    text = out.getvalue()
    for shown in ("1.1%", "2.2%", "33.3%", "44.4%", "55.5%", "66.6%", "77.7%", "88.8%", "cold start", "RL", "plain"):
        assert shown in text
    assert "…" not in text
    lines = [line for line in text.splitlines() if "search" in line]
    assert ("–" in lines[0]) == (width == 160)


@pytest.mark.parametrize("width", [80, 250])
def test_scores_of_every_policy_and_scorer_are_shown_at_any_width(width):
    """Catches columns without width, which show nothing, on a narrow terminal or in a log."""
    rows = {
        stage: [{"name": name, "value": 0.111 * (i + 1), "interval": (0.01, 0.99), "n": 7, "failed": 2, "undecided": 1}
                for name in ("perception+reasoning+search", "overall")]
        for i, stage in enumerate(("base", "evaluate", "evaluate-none"))
    }  # fmt: skip
    titles = ["base", "a model with a long name, both searches", "a model with a long name, without tools"]
    benchmark = {"questions": 10, "rows": rows, "scorers": {"deepeyesv2": rows}}
    stages = [{"name": name, "title": title} for name, title in zip(rows, titles, strict=True)]
    results = {"stages": stages, "benchmarks": {"realx": benchmark}} | {name: {} for name in rows}
    out = io.StringIO()
    print_scores(results, Console(file=out, width=width))
    text = " ".join(out.getvalue().split())
    assert "…" not in text
    for value in ("11.1%", "22.2%", "33.3%"):
        assert text.count(value) == 4  # two rows by two scorers
    for title in titles:
        assert title in text


def test_a_row_without_a_verdict_has_no_accuracy():
    """Catches 0 % where every answer failed or is undecided."""
    unknown = _row(0.0) | {"n": 0}
    out = io.StringIO()
    print_comparison({"evaluate": {"overall": unknown, "search": unknown}}, console=Console(file=out, width=160))
    assert "0.0%" not in out.getvalue() and out.getvalue().count("–") == 8


def test_the_table_is_titled_and_ordered_as_the_summary_lists():
    """Catches: a policy shown under its name in files, in another order, or without a result."""
    listed = [("m_7b", "m 7b"), ("initial", "cold start"), ("final", "RL"), ("later", "later")]
    summary = {"final": {"overall": _row(0.3)}, "initial": {"overall": _row(0.2)}, "m_7b": {"overall": _row(0.1)}}
    summary["stages"] = [{"name": name, "title": title, "init": ""} for name, title in listed]
    out = io.StringIO()
    print_comparison(summary, console=Console(file=out, width=160))
    text = out.getvalue()
    assert text.index("m 7b") < text.index("cold start") < text.index("RL") and "later" not in text
    assert text.index("10.0%") < text.index("20.0%") < text.index("30.0%")
