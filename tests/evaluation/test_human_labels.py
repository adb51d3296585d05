import json
import math

import pytest

from dv2_jax.config import ConfigError
from dv2_jax.evaluation.benchmarks.benchmark import Score
from dv2_jax.evaluation.human_labels import HumanLabel, agreement_lines, check_labels, label_agreement, read_labels


def scores(*values, **fields):
    return [
        Score(value, "" if value is not None else "lost", question_id=f"q{i}", **fields)
        for i, value in enumerate(values)
    ]


def label(question, correct, **fields):
    return HumanLabel("vstar", question, correct, **fields)


def agreement(labels, found, **fields):
    return label_agreement(labels, "vstar", "evaluate", found, **fields)


def test_labels_are_read_with_their_defaults(tmp_path):
    path = tmp_path / "labels.jsonl"
    lines = [
        {"benchmark": "vstar", "question_id": 17, "correct": True},
        {"benchmark": "vstar", "question_id": "a", "correct": False, "sample": 2, "annotator": "x", "answer": "B"},
    ]
    path.write_text("\ufeff" + "\n\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    assert read_labels(path) == [
        HumanLabel("vstar", "17", True),
        HumanLabel("vstar", "a", False, 2, "x", "", "B"),
    ]


GOOD = {"benchmark": "vstar", "question_id": "1", "correct": True}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON object"),
        ("[1]", "line 2: '.1.' is no JSON object"),
        (
            json.dumps({"benchmark": "vstar", "correct": True}),
            "line 2: the field question_id is missing; there are benchmark",
        ),
        (json.dumps(GOOD | {"correct": "yes"}), "line 2: correct = 'yes': use true or false"),
        (json.dumps(GOOD | {"correct": 1}), "line 2: correct = 1: use true or false"),
        (json.dumps(GOOD | {"sample": -1}), "line 2: sample = -1: use an integer from 0"),
        (json.dumps(GOOD | {"right": True}), "line 2: unknown field right: use benchmark, question_id"),
        (json.dumps(GOOD), "line 2 labels question '1' again, as line 1 did"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path, line, message):
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(ConfigError, match=message):
        read_labels(path)


def test_a_file_without_labels_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="empty.jsonl has no labels"):
        read_labels(tmp_path / "empty.jsonl")
    with pytest.raises(ConfigError, match="eval.human_labels: there is no file"):
        read_labels(tmp_path / "none.jsonl")


def test_the_agreement_counts_answers_that_both_have_judged():
    found = scores(1.0, 1.0, 0.0, 0.0, None, 0.5)
    labels = [label("q0", True), label("q1", False), label("q2", False), label("q3", True), label("q4", True),
              label("q5", False), label("q9", True), label("q0", True, sample=3)]  # fmt: skip
    entry = agreement(labels, found)
    assert entry["labels"] == 5
    assert (entry["agreement"], entry["sensitivity"], entry["specificity"]) == (0.6, 0.5, pytest.approx(2 / 3))
    assert (entry["without_verdict"], entry["unknown"]) == (1, ["q0#3", "q9"])
    assert entry["accuracy"] == pytest.approx(0.4)
    assert json.loads(json.dumps(entry)) == entry


def test_a_lenient_judge_is_corrected_downward():
    """Catches a correction in the wrong direction."""
    found = scores(*[1.0] * 80 + [0.0] * 20)
    labels = [label(f"q{i}", i >= 20) for i in range(80)] + [label(f"q{i}", False) for i in range(80, 100)]
    entry = agreement(labels, found)
    assert (entry["sensitivity"], entry["specificity"]) == (1.0, 0.5)
    assert entry["corrected"] == pytest.approx(0.6)
    low, high = entry["corrected_interval"]
    assert low < 0.6 < high < 0.8
    assert any(line.startswith("accuracy corrected for the scorer's errors: 60.0%") for line in agreement_lines(entry))


def test_several_annotators_vote():
    labels = [label("q0", value, annotator=name) for name, value in zip("abc", (True, True, False), strict=True)]
    labels += [label("q1", value, annotator=name) for name, value in zip("ab", (True, False), strict=True)]
    entry = agreement(labels, scores(1.0, 1.0))
    assert (entry["labels"], entry["annotators"], entry["ties"]) == (1, 3, 1)
    assert entry["alpha"] is not None and not math.isnan(entry["alpha"])
    assert "1 answers on which humans are divided" in "\n".join(agreement_lines(entry))


def test_labels_of_another_answer_are_left_out():
    """Catches labels of an earlier model's answers that are used for those of a new one."""
    labels = [label("q0", True, answer="7 "), label("q1", True, answer="8"), label("q2", False)]
    finals = {("q0", 0): "7", ("q1", 0): "9", ("q2", 0): "1"}
    entry = agreement(labels, scores(1.0, 0.0, 0.0), finals=finals)
    assert (entry["labels"], entry["other_answers"], entry["agreement"]) == (2, 1, 1.0)


def test_labels_belong_to_a_policy():
    labels = [label("q0", True), label("q0", False, stage="base")]
    found = scores(1.0)
    assert agreement(labels, found)["agreement"] == 1.0
    base = label_agreement(labels, "vstar", "base", found, is_main=False)
    assert (base["labels"], base["agreement"]) == (1, 0.0)
    assert label_agreement(labels, "vstar", "other", found, is_main=False) is None
    assert label_agreement(labels, "mathvista", "evaluate", found) is None


@pytest.mark.parametrize(
    ("verdicts", "reason"),
    [
        ([True, True], "no label says that an answer is wrong"),
        ([False, False], "no label says that an answer is correct"),
        ([False, True], "the scorer agrees with humans no more than by chance"),
    ],
)
def test_the_reason_for_no_correction_is_stated(verdicts, reason):
    entry = agreement([label(f"q{i}", verdict) for i, verdict in enumerate(verdicts)], scores(1.0, 0.0))
    assert entry["corrected"] is None
    assert agreement_lines(entry)[-1] == f"no corrected accuracy: {reason}"


def test_correlated_answers_widen_the_corrected_interval():
    values = [float(i // 10 % 2) for i in range(100)]
    labels = [label(f"q{i}", bool(values[i])) for i in range(30)]
    clustered = [Score(v, question_id=f"q{i}", cluster=f"image{i // 10}") for i, v in enumerate(values)]

    def width(entry):
        return entry["corrected_interval"][1] - entry["corrected_interval"][0]

    assert width(agreement(labels, clustered)) > 1.5 * width(agreement(labels, scores(*values)))


def test_labels_of_other_benchmarks_are_reported():
    assert check_labels([label("q", True)], ["mathvista"]) == [
        "eval.human_labels: 1 labels are for 'vstar', which is not evaluated (mathvista are)"
    ]
    assert check_labels([label("q", True)], ["vstar"]) == []


def test_many_unknown_questions_are_counted():
    entry = agreement([label(f"x{i}", True) for i in range(9)], scores(1.0))
    assert agreement_lines(entry)[-1] == "human labels of unknown questions: x0, x1, x2, x3, x4 and 4 more"
