"""Tests the reading of records: of every version of runs, with scores and without."""

import json

import pytest

from dv2_jax.evaluation.analysis.answer_rows import has_tools, read_run
from tests.evaluation.analysis.hand_made import answered, compute, crop, record, said, scored, write_run


def outcomes(run):
    return {(row.question_id, row.sample): row.outcome for row in run.rows}


def test_records_without_scores_are_classified_by_their_reward(tmp_path):
    """Catches an analysis that needs the newer fields, which runs of version 0.1 do not have."""
    made = [
        record("a", said(), right=True),
        record("b", said(), right=False),
        record("c", said(), right=None, dropped=True),
        record("d", said(), right=None),
    ]
    run = read_run(write_run(tmp_path, {"evaluate": made}))
    assert list(outcomes(run).values()) == ["correct", "wrong", "failed", "unscored"]
    assert {row.benchmark for row in run.rows} == {"embedded"}


def test_scores_decide_where_there_are_score_files(tmp_path):
    """Catches a score of an earlier attempt, of another scorer, or an older line that counts for an answer."""
    names = ["a", "b", "c", "d", "e", "f"]
    made = [record(name, said(), answer=answered(name, attempt=2 if name == "e" else 1)) for name in names]
    made[5]["answer"]["failure"] = "the endpoint did not reply"
    lines = [
        scored("a", 0.0),
        scored("a", 1.0),
        scored("a", 0.0, scorer="deepeyesv2"),
        scored("b", 0.5),
        scored("c", None),
        scored("d", None, is_undecided=True),
        scored("e", 1.0, attempt=1),
        scored("f", 1.0),
    ]
    run = read_run(write_run(tmp_path, {"evaluate": made}, {"evaluate": lines}))
    assert list(outcomes(run).values()) == ["correct", "wrong", "failed", "undecided", "unscored", "failed"]
    assert {row.benchmark for row in run.rows} == {"vstar"}


def test_records_of_all_hosts_and_the_newest_of_an_answer_count(tmp_path):
    first = [record("a", said(), answer=answered("a")), record("a", crop(), said(), answer=answered("a", attempt=2))]
    write_run(tmp_path, {"evaluate": first})
    host = tmp_path / "trajectories" / "host-1" / "evaluate.jsonl"
    host.parent.mkdir()
    host.write_text(json.dumps(record("b", said(), answer=answered("b"))) + "\n" + '{"id": "torn')
    with pytest.warns(UserWarning, match="incomplete"):
        run = read_run(tmp_path)
    assert {row.question_id: row.calls for row in run.rows} == {"a": 1, "b": 0}


def test_calls_count_as_they_were_counted_when_they_were_made(tmp_path):
    """Catches a recount of calls whose tool is unknown here, or whose rule has changed since."""
    stored = answered("a", tool_counts={"crop": 1, "mark": 2, "other": 0})
    run = read_run(
        write_run(tmp_path, {"evaluate": [record("a", crop(), said(), answer=stored), record("b", crop(), said())]})
    )
    assert [row.kinds for row in run.rows] == [{"crop": 1, "mark": 2}, {"crop": 1}]


def test_people_name_the_class_of_an_error(tmp_path):
    made = [record("a", compute(), said()), record("b", compute(), said())]
    run = write_run(tmp_path, {"evaluate": made})
    (run / "error_labels.csv").write_text(
        "stage,benchmark,question_id,sample,label\nevaluate,embedded,a,0,wrong label\n"
    )
    assert {row.question_id: row.error for row in read_run(run).rows} == {"a": "wrong label", "b": "misread"}


def test_a_policy_whose_calls_were_all_refused_has_no_tools(tmp_path):
    made = {
        "evaluate": [record("a", crop(), said())],
        "evaluate-none": [record("a", said())],
        "no_tools": [record("a", crop(status="refused", images=()), said())],
        "other": [record("a", said())],
        "prompted": [record("a", said(), answer=answered("a", tools=[], benchmark="embedded"))],
    }
    run = read_run(write_run(tmp_path, made))
    assert {stage: has_tools(rows) for (_, stage), rows in run.evaluations().items()} == {
        "evaluate": True, "evaluate-none": False, "no_tools": False, "other": True, "prompted": False,
    }  # fmt: skip


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run directory"):
        read_run(tmp_path / "missing")
    assert read_run(tmp_path).rows == []


def test_answers_are_in_the_order_of_their_questions(tmp_path):
    """Catches figures that depend on which answer ended first, and so differ after an interruption."""
    names = ["q10", "q9", "q9", "a", "2", "10"]
    made = [record(f"{name}-{i}", said(), answer=answered(name, sample=i)) for i, name in enumerate(names)]
    run = read_run(write_run(tmp_path, {"evaluate@vstar": made}))
    assert [(row.question_id, row.sample) for row in run.rows] == [
        ("2", 4), ("10", 5), ("a", 3), ("q9", 1), ("q9", 2), ("q10", 0),
    ]  # fmt: skip
