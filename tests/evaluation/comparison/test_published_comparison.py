import json

import pytest
from scipy.stats import norm

from dv2_jax import compare
from dv2_jax.evaluation.benchmarks.benchmark_registry import BENCHMARKS
from dv2_jax.evaluation.comparison.published_comparison import compare_published
from dv2_jax.evaluation.comparison.stored_run import open_run
from dv2_jax.evaluation.published import (
    CAVEATS,
    QUESTIONS,
    PublishedModelError,
    published_line,
    published_note,
    published_realx,
    published_values,
)
from dv2_jax.evaluation.statistics import wilson_interval
from tests.evaluation.comparison.stored_evaluations import write_evaluation


def vstar_run(tmp_path, right, n=191):
    row = {"name": "overall", "value": right / n, "interval": list(wilson_interval(right, n)), "n": n, "failed": 0}
    return write_evaluation(
        tmp_path / "a", {f"q{i}": float(i < right) for i in range(n)}, benchmark="vstar", rows=[row]
    )


def test_a_published_number_is_compared_without_pairs(tmp_path):
    """Catches the paper's own error that is left out: the difference would look twice as certain."""
    (found,) = compare_published([open_run(str(vstar_run(tmp_path, 140)))], "deepeyesv2-7b")
    p, q = 140 / 191, 0.818
    z = (p - q) / (p * (1 - p) / 191 + q * (1 - q) / 191) ** 0.5
    assert (found.benchmark, found.published, found.difference) == ("vstar", 0.818, pytest.approx(p - q))
    assert found.p_value == pytest.approx(2 * norm.cdf(z), abs=0.002)
    assert found.smallest_visible == pytest.approx(0.119, abs=0.003)


@pytest.mark.parametrize(
    ("right", "n", "note"),
    [
        (150, 191, "within the noise"),
        (110, 191, "visible"),
        (40, 50, "other rows: not the published number of questions"),
    ],
)
def test_the_note_says_if_the_difference_is_visible(tmp_path, right, n, note):
    (found,) = compare_published([open_run(str(vstar_run(tmp_path, right, n)))], "deepeyesv2-7b")
    assert found.note == note


def test_the_command_compares_a_single_run_with_a_paper(tmp_path, capsys):
    run_dir = vstar_run(tmp_path, 150)
    compare.main(
        [
            str(run_dir),
            "--published=deepeyesv2-7b",
            f"--output={tmp_path / 'x.json'}",
            f"--output={tmp_path / 'x.html'}",
        ]
    )
    assert "not paired, since the answers are not known" in " ".join(capsys.readouterr().out.split())
    (entry,) = json.loads((tmp_path / "x.json").read_text())["published"]
    assert (entry["model"], entry["note"]) == ("deepeyesv2-7b", "within the noise")
    assert "Published values of deepeyesv2-7b" in (tmp_path / "x.html").read_text()


def test_unknown_models_and_benchmarks_are_named(tmp_path, capsys):
    with pytest.raises(
        PublishedModelError, match="--published=deepeyes-v2-7b: there are .*deepeyesv2-7b.*did you mean"
    ):
        published_values("deepeyes-v2-7b")
    run_dir = write_evaluation(tmp_path / "own", {"q1": 1.0})
    with pytest.raises(SystemExit):
        compare.main([str(run_dir), "--published=deepeyesv2-7b"])
    assert "the runs have none of its benchmarks (vstar, hrbench4k" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("benchmark", "line"),
    [
        ("vstar", "paper: 81.8, 75.7 to 86.6"),
        ("hrbench4k", "paper: 77.9, 74.9 to 80.6"),
        ("treebench", "paper: 42.5, 37.8 to 47.4"),
        ("mathvista", "paper: 71.9, 69.0 to 74.6"),
        ("mmsearch", "paper: 63.7, 56.3 to 70.5"),
        ("fvqa", "paper: 60.6, 58.3 to 62.8"),
        ("tir", "paper: 20.8, 18.6 to 23.2"),
        ("realx", "paper: 28.3, 23.5 to 33.6"),
        ("embedded", ""),
    ],
)
def test_published_values_have_the_intervals_of_their_size(benchmark, line):
    """Catches an interval of another number of questions; the bounds were computed by hand from the paper's tables."""
    assert published_line(benchmark) == line


def test_realx_has_subsets_and_every_benchmark_a_caveat():
    realx = published_realx("deepeyesv2-7b")
    assert str(realx["integration"]) == "18.1, 10.9 to 28.5" and str(realx["overall"]) == "28.3, 23.5 to 33.6"
    assert published_realx("gpt-4o+both")["overall"].value == 0.387 and published_realx("x") == {}
    assert published_note("realx").startswith("paper: 28.3, 23.5 to 33.6; perception 19.5")
    assert published_note("embedded") == "" and "rubric judge" in published_note("vstar")
    assert CAVEATS.keys() == QUESTIONS.keys() - {"mme_realworld", "ocrbench"}  # rules without a judge


def test_every_column_of_the_paper_is_there():
    """The paper's tables have RealX-Bench and 21 further columns."""
    for model in ("deepeyesv2-7b", "qwen2.5-vl-7b"):
        values = published_values(model)
        assert values.keys() == QUESTIONS.keys() and len(values) == 22
        assert all(0.1 < found.value < 0.9 for found in values.values())
    gains = {
        name: published_values("deepeyesv2-7b")[name].value - published_values("qwen2.5-vl-7b")[name].value
        for name in QUESTIONS
    }
    assert gains["vstar"] == pytest.approx(0.033) and gains["infoseek"] == pytest.approx(-0.026)


def test_published_numbers_are_of_registered_benchmarks_with_their_rows():
    """Catches a renamed benchmark, whose published value would no longer be found."""
    rows = {name: BENCHMARKS.get(name)().published_rows for name in QUESTIONS}
    other = {name: (QUESTIONS[name], rows[name]) for name in QUESTIONS if rows[name] != QUESTIONS[name]}
    # 171 of 300 questions have images and are judged; 194 of 300 are public; 525 problems have 1,740 questions
    assert other == {"mmsearch": (171, 300), "realx": (300, 194), "wemath": (525, 1740)}
