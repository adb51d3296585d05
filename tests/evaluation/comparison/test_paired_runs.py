import csv
import io
import json

import numpy as np
import pytest

from dv2_jax import compare
from dv2_jax.evaluation.comparison.comparison_table import count_note, notes
from dv2_jax.evaluation.comparison.paired_runs import compare_benchmark, compare_runs, effort
from dv2_jax.evaluation.comparison.stored_run import open_run
from dv2_jax.evaluation.statistics import PairedCounts, mcnemar, smallest_visible_difference
from tests.evaluation.comparison.stored_evaluations import write_evaluation


def two_runs(tmp_path, a, b, other=None, **fields):
    first = write_evaluation(tmp_path / "a", a, **fields)
    return open_run(str(first)), open_run(str(write_evaluation(tmp_path / "b", b, **fields | (other or {}))))


def test_questions_are_paired_by_their_ids(tmp_path):
    """Catches a pairing by position: the second run has other questions in another order."""
    a = {"q1": 1.0, "q2": 1.0, "q3": 0.0, "q4": 0.0, "q5": None, "q6": 1.0, "only a": 1.0}
    b = {"q6": None, "q4": 0.0, "q3": 1.0, "q2": 0.0, "q1": 1.0, "q5": 1.0, "x": 0.0, "y": 0.0}
    found = compare_benchmark("embedded", *two_runs(tmp_path, a, b))
    assert found.counts == PairedCounts(both=1, only_a=1, only_b=1, neither=1)
    assert (found.only_answered_a, found.only_answered_b, found.unscored_a, found.unscored_b) == (1, 2, 1, 1)
    assert found.discordant == ("q2", "q3")
    assert found.difference.difference == 0
    assert found.verdict() == "no difference"


def many(share_a, share_b, n=200, seed=0):
    generator = np.random.default_rng(seed)
    draw = generator.random((2, n))
    return (
        {f"q{i}": float(draw[0, i] < share_a) for i in range(n)},
        {f"q{i}": float(draw[1, i] < share_b) for i in range(n)},
    )


def test_the_comparison_has_the_tests_of_the_statistics(tmp_path):
    found = compare_benchmark("embedded", *two_runs(tmp_path, *many(0.5, 0.8)))
    counts, difference = found.counts, found.difference
    assert difference.p_value == mcnemar(counts.only_a, counts.only_b)[0]
    assert difference.difference == pytest.approx((counts.only_b - counts.only_a) / 200)
    discordance = (counts.only_a + counts.only_b) / 200
    assert difference.smallest_visible == smallest_visible_difference(200, discordance)
    assert (
        f"{100 * difference.smallest_visible:.1f} points are not visible at this n (200 questions)"
        in found.visibility()
    )


def test_a_difference_within_the_noise_is_called_so(tmp_path):
    """Catches a verdict by the sign of the difference."""
    runs = two_runs(tmp_path, *many(0.8, 0.8, seed=3))
    (found,) = compare_runs(runs)
    assert not found.is_significant
    assert found.verdict().endswith("points higher, which is within the noise")
    (clear,) = compare_runs(two_runs(tmp_path / "clear", *many(0.3, 0.8)))
    assert clear.verdict().startswith("b is better by ")


def test_p_values_are_adjusted_for_all_benchmarks(tmp_path):
    """Catches one significant benchmark of many that chance explains."""
    generator = np.random.default_rng(0)
    for index in range(6):
        outcomes = many(0.5, 0.5, 60, int(generator.integers(1000)))
        for name, values in zip("ab", outcomes, strict=True):
            write_evaluation(tmp_path / name, values, benchmark=f"bench{index}")
    comparisons = compare_runs([open_run(str(tmp_path / name)) for name in "ab"])
    assert [comparison.benchmark for comparison in comparisons] == [f"bench{i}" for i in range(6)]
    assert all(row.adjusted_p >= row.difference.p_value for row in comparisons)
    smallest = min(comparisons, key=lambda row: row.difference.p_value)
    assert smallest.adjusted_p == pytest.approx(min(1, 6 * smallest.difference.p_value))
    assert count_note(comparisons).startswith("6 tests: by chance alone about 0.3 have p < 0.05")


def test_questions_about_one_image_are_a_cluster(tmp_path):
    a, b = many(0.5, 0.7, 80)
    clusters = {f"q{i}": f"image {i // 4}" for i in range(80)}
    found = compare_benchmark("embedded", *two_runs(tmp_path, a, b, clusters=clusters))
    assert (found.difference.clusters, found.difference.test) == (20, "sign flips per cluster")
    assert any("20 clusters" in line for line in notes(found))


def test_samples_of_a_question_are_averaged_first(tmp_path):
    """Catches answers that are compared as if they were questions."""
    found = compare_benchmark(
        "embedded",
        *two_runs(tmp_path, {"q1": [1.0, 1.0, 0.0], "q2": [0.0, None]}, {"q1": [0.0, 0.0, 1.0], "q2": [1.0]}),
    )
    assert found.counts == PairedCounts(0, 1, 1, 0)
    assert (found.difference.n, found.difference.difference) == (2, pytest.approx((1 / 3 - 2 / 3 + 1) / 2))
    assert "samples per question: 3 and 3" not in found.warnings


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"scorer": "official+qwen/consistency"}, "scorer and judge: official and official+qwen/consistency"),
        ({"tools": ()}, "tools: code and none"),
        ({"digest": "other"}, "prompt, tools or sampling parameters differ for 2 of 2 answers"),
    ],
)
def test_other_protocols_are_reported(tmp_path, fields, warning):
    (found,) = compare_runs(two_runs(tmp_path, {"q1": 1.0, "q2": 0.0}, {"q1": 1.0, "q2": 0.0}, fields))
    assert found.warnings == (warning,)
    assert any(line.startswith("warning: not the same protocol") for line in notes(found))


def test_scores_by_the_judge_in_one_run_alone_are_counted(tmp_path):
    """Catches two runs that are compared as if one rule had scored both."""
    outcomes = {"q1": 1.0, "q2": 0.0, "q3": 1.0}
    (found,) = compare_runs(two_runs(tmp_path, outcomes, outcomes, {"judged": ("q1", "q2")}))
    assert (found.judged_a, found.judged_b, found.judged_in_one) == (0, 2, 2)
    assert any(
        "scored by the judge: 0 questions of a and 2 of b, 2 of them in one run alone" in line for line in notes(found)
    )
    assert not any("judge" in line for line in notes(compare_runs(two_runs(tmp_path / "rules", outcomes, outcomes))[0]))


def test_other_settings_of_scores_are_reported(tmp_path):
    outcomes = {"q1": 1.0}
    runs = two_runs(tmp_path, outcomes, outcomes)
    runs[1].config["reward"]["verdicts"] = ["rules"]
    (found,) = compare_runs(runs)
    assert found.warnings == ("reward.verdicts: ['rules', 'judge'] and ['rules']",)


def test_other_rows_and_samples_are_reported(tmp_path):
    found = compare_benchmark("embedded", *two_runs(tmp_path, {"q1": 1.0}, {"q1": [1.0, 0.0], "q2": 0.0}))
    assert found.warnings == ("samples per question: 1 and 2", "rows: 1 and 2")


def test_an_overall_value_that_is_no_mean_is_explained(tmp_path):
    """Catches a difference of means that is read as one of strict scores."""
    row = {"name": "overall", "value": 0.25, "interval": [0, 1], "n": 2, "failed": 0}
    found = compare_benchmark(
        "embedded", *two_runs(tmp_path, {"q1": 1.0, "q2": 0.0}, {"q1": 1.0, "q2": 0.0}, rows=[row])
    )
    assert sum("has 25.0%, by the benchmark's own aggregate" in line for line in notes(found)) == 2


def test_efforts_are_per_answer_and_per_correct_answer(tmp_path):
    found = compare_benchmark(
        "embedded", *two_runs(tmp_path, {"q1": 1.0, "q2": 0.0}, {"q1": 0.0, "q2": 0.0}, tokens=80)
    )
    assert (found.effort_a.tokens_per_correct, found.effort_b.tokens_per_correct) == (160, None)
    assert (found.effort_a.tool_calls, found.effort_a.seconds, found.effort_a.completion_tokens) == (2, 1.5, 80)


def test_costs_are_those_of_the_runs_results(tmp_path):
    run = open_run(str(write_evaluation(tmp_path / "a", {"q1": 1.0})))
    run.results["benchmarks"]["embedded"]["usage"] = {"evaluate": {"cost": 3.0, "cost_per_correct": 1.5}}
    assert effort(run, "embedded").cost_per_correct == 1.5


def test_the_command_prints_and_writes_the_same_numbers(tmp_path, capsys):
    a, b = many(0.4, 0.7, 60)
    write_evaluation(tmp_path / "a", a)
    write_evaluation(tmp_path / "b", b)
    write_evaluation(tmp_path / "c", a)
    compare.main(
        [*(str(tmp_path / name) for name in "abc"), f"--output={tmp_path / 'x.json'}", f"--output={tmp_path / 'x.csv'}"]
    )
    out = capsys.readouterr().out
    assert "A = a, B = b" in out and "A = a, B = c" in out
    assert "2 tests: by chance alone" in out
    stored = json.loads((tmp_path / "x.json").read_text())
    rows = list(csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text())))
    assert [run["title"] for run in stored["runs"]] == ["a", "b", "c"]
    for entry, row in zip(stored["comparisons"], rows, strict=True):
        assert float(row["difference"]) == entry["difference"]["difference"]
        assert float(row["p"]) == entry["difference"]["p_value"]
        assert int(row["only_b"]) == entry["counts"]["only_b"]
    assert "visible at this n (60 questions)" in stored["comparisons"][0]["visibility"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "give at least two runs to compare, or one and --published=MODEL"),
        (["a", "v"], "no benchmark in common (a: embedded; v: vstar)"),
        (["a", "a", "--output=x.pdf"], "--output=x.pdf: use a name that ends in .html, .json or .csv"),
        (["a", "none"], "no such run directory"),
    ],
)
def test_the_command_ends_with_one_sentence(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_evaluation(tmp_path / "a", {"q1": 1.0})
    write_evaluation(tmp_path / "v", {"q1": 1.0}, benchmark="vstar")
    with pytest.raises(SystemExit):
        compare.main(arguments)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
