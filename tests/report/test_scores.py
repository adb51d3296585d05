"""Tests the tables of benchmarks, on the report page and on a terminal."""

import io

import pytest
from rich.console import Console

from dv2_jax.evaluation.table import print_scores
from dv2_jax.report.scores import benchmark_scores


def row(name: str, value: float | None, interval: list[float] | None, n: int, failed: int) -> dict:
    return {"name": name, "value": value, "interval": interval, "n": n, "failed": failed}


RESULTS = {
    "stages": [{"name": "base", "title": "base", "init": ""}, {"name": "evaluate", "title": "m <b>", "init": ""}],
    "base": {"overall": {}},
    "evaluate": {"overall": {}},
    "benchmarks": {
        "sums": {
            "source": "a <file>",
            "questions": 1234,
            "rows": {
                "base": [row("easy", 0.123, [0.111, 0.222], 17, 3), row("overall", None, None, 0, 20)],
                "evaluate": [row("hard", 0.456, None, 18, 2), row("overall", 0.789, [0.7, 0.8], 19, 1)],
            },
        },
    },
}
TITLES = {"base": "base", "evaluate": "m <b>"}
SHOWN = ("12.3%", "11.1% to 22.2%", "17", "45.6%", "78.9%", "70.0% to 80.0%", "19", "20")


@pytest.mark.parametrize("width", [70, 160])
def test_the_terminal_shows_every_number(width):
    """Catches numbers that a narrow terminal cuts off, and a row that only one policy has."""
    out = io.StringIO()
    print_scores(RESULTS, Console(file=out, width=width))
    text = out.getvalue()
    assert all(shown in text for shown in SHOWN) and "…" not in text
    assert "sums: 1,234 questions" in text and "failed" in text
    (easy,) = [line for line in text.splitlines() if "easy" in line]
    assert easy.count("–") == (5 if width == 160 else 0)


def test_the_page_shows_every_number_and_escapes_names():
    """Catches a table without the failed answers, and markup of a user's file name."""
    page = benchmark_scores(RESULTS, TITLES)
    assert all(f"<td>{shown}</td>" in page or f">{shown}</td>" in page for shown in SHOWN)
    assert "1,234 questions from a &lt;file&gt;" in page and "m &lt;b&gt;" in page
    assert benchmark_scores({"evaluate": {}}, TITLES) == "", "results of earlier versions have no benchmarks"


def test_the_reason_of_a_missing_table_is_shown():
    benchmark = RESULTS["benchmarks"]["sums"] | {"rows": {"evaluate": []}, "error": "aggregate: KeyError: 'x'"}
    assert "aggregate: KeyError" in benchmark_scores({"benchmarks": {"sums": benchmark}}, TITLES)
