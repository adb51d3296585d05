import io

import pytest
from rich.console import Console

from dv2_jax.evaluation.table import print_comparison


def _row(accuracy: float) -> dict:
    return {"accuracy": accuracy, "tool_rate": 0.5, "tool_calls": 1.25, "reward": 0.75}


@pytest.mark.parametrize("width", [70, 160])
def test_the_table_shows_every_number_at_any_width(width):
    """Catches columns that a narrow terminal cuts off, and a stage that lacks a skill."""
    stages = {
        "base": {"overall": _row(0.011), "plain": _row(0.022)},
        "cold_start": {"overall": _row(0.333), "plain": _row(0.444), "search": _row(0.555)},
        "rl": {"overall": _row(0.666), "plain": _row(0.777), "search": _row(0.888)},
    }
    out = io.StringIO()
    print_comparison(stages, console=Console(file=out, width=width))
    text = out.getvalue()
    for shown in ("1.1%", "2.2%", "33.3%", "44.4%", "55.5%", "66.6%", "77.7%", "88.8%", "cold start", "RL", "plain"):
        assert shown in text
    assert "…" not in text
    lines = [line for line in text.splitlines() if "search" in line]
    assert ("–" in lines[0]) == (width == 160)
