import json

import pytest

from dv2_jax.evaluation.comparison.stored_run import ComparisonError, distinct_titles, open_run
from tests.evaluation.comparison.stored_evaluations import write_evaluation


def test_a_run_has_the_scores_and_answers_of_its_policy(tmp_path):
    run_dir = write_evaluation(tmp_path / "a", {"q1": 1.0, "q2": 0.0, "q3": None})
    write_evaluation(run_dir, {"v1": 1.0}, benchmark="vstar")
    write_evaluation(run_dir, {"q1": 0.0}, stage="base")
    run = open_run(str(run_dir))
    assert (run.stage, run.title, list(run.benchmarks)) == ("evaluate", "a", ["embedded", "vstar"])
    part = run.benchmarks["embedded"]
    assert {key: record.score.value for key, record in part.scores.items()} == {("q1", 0): 1.0, ("q2", 0): 0.0}
    assert part.questions == ["q1", "q2", "q3"]
    assert part.record(("q2", 0))["question"]["id"] == "q2"
    assert part.record(("q9", 0)) is None
    base = open_run(f"{run_dir}@base")
    assert (base.stage, base.title) == ("base", "a, base")


def test_the_newest_lines_count_and_incomplete_ones_do_not(tmp_path):
    """Catches the score of a first attempt that stays valid for the second, and a line that a kill left incomplete."""
    run_dir = write_evaluation(tmp_path / "a", {"q1": 0.0, "q2": 1.0})
    write_evaluation(run_dir, {"q1": 1.0}, attempt=2)
    write_evaluation(run_dir, {"q2": None}, attempt=2)
    for folder in ("scores", "trajectories"):
        with open(run_dir / folder / "evaluate.jsonl", "a") as file:
            file.write('{"benchmark": "embedded", "quest')
    part = open_run(str(run_dir)).benchmarks["embedded"]
    assert {key: record.score.value for key, record in part.scores.items()} == {("q1", 0): 1.0}
    assert part.infos["q2", 0].failure


def test_further_hosts_have_files_of_their_own(tmp_path):
    run_dir = write_evaluation(tmp_path / "a", {"q1": 1.0})
    other = write_evaluation(tmp_path / "b", {"q2": 0.0})
    for folder in ("scores", "trajectories"):
        (run_dir / folder / "host-1").mkdir()
        (other / folder / "evaluate.jsonl").rename(run_dir / folder / "host-1" / "evaluate.jsonl")
    part = open_run(str(run_dir)).benchmarks["embedded"]
    assert sorted(part.questions) == ["q1", "q2"]
    assert part.record(("q2", 0))["question"]["id"] == "q2"


def test_scores_of_an_earlier_answer_are_left_out_and_counted(tmp_path):
    """Catches the score of an answer that was replaced, in a run that was killed before the new one was scored."""
    write_evaluation(tmp_path / "a", {"q1": 1.0, "q2": 0.0}, basis="own")
    part = open_run(str(tmp_path / "a")).benchmarks["embedded"]
    assert len(part.scores) == 2 and part.stale == 0
    write_evaluation(tmp_path / "a", {"q2": 1.0}, basis="of other settings")
    part = open_run(str(tmp_path / "a")).benchmarks["embedded"]
    assert list(part.scores) == [("q1", 0)] and part.stale == 1
    write_evaluation(tmp_path / "b", {"q1": 1.0}, basis="of another version")
    assert len(open_run(str(tmp_path / "b")).benchmarks["embedded"].scores) == 1


def test_the_scorer_that_was_used_last_counts(tmp_path):
    """Catches scores of two judges that are mixed after scoring again."""
    run_dir = write_evaluation(tmp_path / "a", {"q1": 0.0, "q2": 0.0}, scorer="official+old/consistency")
    write_evaluation(run_dir, {"q1": 1.0, "q2": 1.0}, scorer="deepeyesv2+old/consistency")
    write_evaluation(run_dir, {"q1": 1.0}, scorer="official+new/consistency")
    part = open_run(str(run_dir)).benchmarks["embedded"]
    assert part.scorer == "official+new/consistency"
    assert list(part.scores) == [("q1", 0)]
    assert open_run(str(run_dir), scorer="deepeyesv2").benchmarks["embedded"].scorer == "deepeyesv2+old/consistency"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("none", "none: no such run directory"),
        ("empty", "no scores/.*give the run directory of a finished"),
        ("a@final", "no policy 'final'; it has base, evaluate"),
        ("a --scorer", "no score by 'nobody'"),
    ],
)
def test_what_cannot_be_opened_is_named(tmp_path, spec, message):
    (tmp_path / "empty").mkdir()
    write_evaluation(tmp_path / "a", {"q1": 1.0})
    write_evaluation(tmp_path / "a", {"q1": 1.0}, stage="base")
    name, _, scorer = spec.partition(" --scorer")
    with pytest.raises(ComparisonError, match=message):
        open_run(str(tmp_path / name), scorer="nobody" if "--scorer" in spec else scorer)


def test_runs_of_the_same_name_are_have_distinct_titles(tmp_path):
    runs = [open_run(str(write_evaluation(tmp_path / parent / "x", {"q": 1.0}))) for parent in ("one", "two")]
    titles = [run.title for run in distinct_titles(runs)]
    assert titles == [f"{tmp_path}/one/x, evaluate", f"{tmp_path}/two/x, evaluate"]


def test_a_run_without_stored_answers_is_read_from_its_scores(tmp_path):
    run_dir = write_evaluation(tmp_path / "a", {"q1": 1.0, "q2": 0.0})
    (run_dir / "trajectories" / "evaluate.jsonl").unlink()
    part = open_run(str(run_dir)).benchmarks["embedded"]
    assert part.questions == ["q1", "q2"]
    assert json.loads(json.dumps(part.scores["q1", 0].to_dict()))["outcome"] == "correct"
