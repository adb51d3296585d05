"""Tests what an evaluation stores, and that the same command obtains what is missing and nothing else."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import replace

import pytest

from dv2_jax import evaluate
from dv2_jax.config import ConfigError, RunFailure
from dv2_jax.evaluation.benchmarks.benchmark import Score
from dv2_jax.evaluation.record_files import RecordFile, StorageFailure, read_lines
from dv2_jax.parallel.outage import ServiceOutage
from dv2_jax.telemetry.trajectories import read_trajectories
from tests.evaluation import scripted_evaluation
from tests.evaluation.scripted_evaluation import ScriptedEngines, Sums, config_of

NAME = "evaluate@sums"


@pytest.fixture(autouse=True)
def engines(monkeypatch):
    """Replaces the engine of the command by a scripted one."""
    monkeypatch.setattr(evaluate, "_Engines", ScriptedEngines)
    monkeypatch.setattr(ScriptedEngines, "started", [])
    return ScriptedEngines


def table(config) -> bytes:
    return (run_dir(config) / "results" / "table.csv").read_bytes()


def run_dir(config):
    from pathlib import Path

    return Path(config.run.root) / config.run.name


def overall(results) -> dict:
    return results["benchmarks"]["sums"]["rows"]["evaluate"][-1]


def answers(config) -> list[dict]:
    return [line["answer"] for _, line in read_lines(run_dir(config) / "trajectories" / f"{NAME}.jsonl")]


def test_a_finished_evaluation_starts_nothing_and_has_the_same_results(tmp_path, engines):
    """Catches answers that are obtained, or paid for, twice."""
    config = config_of(tmp_path)
    results = evaluate.run(config)
    assert overall(results)["value"] == pytest.approx(8 / 12) and len(engines.started) == 12
    before = table(config)
    again = evaluate.run(config)
    assert len(engines.started) == 12
    assert table(config) == before
    assert {key: value for key, value in again.items() if key != "seconds"} == {
        key: value for key, value in results.items() if key != "seconds"
    }
    rewards = [record["reward"] for record in read_trajectories(run_dir(config) / "trajectories", NAME)]
    assert results["evaluate"]["overall"]["reward"] == pytest.approx(sum(rewards) / 12)
    record = next(read_trajectories(run_dir(config) / "trajectories", NAME))
    assert record["answer"]["model"] == "random"
    assert f"<answer>{record['answer']['final']}</answer>" in record["turns"][-1]["text"]


def test_an_interrupted_evaluation_continues_with_what_is_missing(tmp_path, engines, monkeypatch):
    """Catches a restart that asks for stored answers, and a table that depends on the interruption."""
    complete = config_of(tmp_path / "a")
    evaluate.run(complete)
    config = config_of(tmp_path / "b")
    engines.started.clear()

    def stops(trajectory_id, turn):
        if len(engines.started) == 8:
            raise KeyboardInterrupt
        return scripted_evaluation.script(trajectory_id, turn)

    monkeypatch.setattr(engines, "script", staticmethod(stops))
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(config)
    stored = {answer["question_id"] for answer in answers(config)}
    assert 0 < len(stored) < 12
    with open(run_dir(config) / "trajectories" / f"{NAME}.jsonl", "ab") as file:
        file.write(b'{"id": "sum-00')  # a line of a killed writer
    monkeypatch.undo()
    monkeypatch.setattr(evaluate, "_Engines", ScriptedEngines)
    ScriptedEngines.started.clear()
    with pytest.warns(UserWarning, match="incomplete lines"):
        evaluate.run(config)
    assert set(ScriptedEngines.started) & stored == set() and len(ScriptedEngines.started) == 12 - len(stored)
    with pytest.warns(UserWarning, match="incomplete lines"):
        assert len(answers(config)) == 12
    assert table(config) == table(complete)


def test_a_failed_answer_is_attempted_again_and_then_stays_failed(tmp_path, engines, monkeypatch):
    """Catches a failure that counts as wrong, endless attempts, and good answers that are asked for again."""
    monkeypatch.setattr(engines, "fails", lambda request: "HTTP 500" if request.question.id == "sum-0004" else "")
    config = config_of(tmp_path, "--config.eval.attempts=2")
    row = overall(evaluate.run(config))
    assert (row["n"], row["failed"]) == (11, 1)
    attempts = [a["attempt"] for a in answers(config) if a["question_id"] == "sum-0004"]
    assert attempts == [1, 2] and len(answers(config)) == 13
    engines.started.clear()
    evaluate.run(config)
    assert engines.started == []
    monkeypatch.setattr(engines, "fails", lambda request: "")
    row = overall(evaluate.run(config, retry_failed=True))
    assert engines.started == ["sum-0004"] and (row["n"], row["failed"]) == (12, 0)
    record = {r["id"]: r for r in read_trajectories(run_dir(config) / "trajectories", NAME)}["sum-0004"]
    assert (record["answer"]["attempt"], record["dropped"], record["reward_parts"]["accuracy"]) == (3, False, 1.0)


def test_rejudging_scores_again_without_answering(tmp_path, engines, monkeypatch):
    """Catches a rejudge that starts the engine, one that keeps old scores, and other scores from stored text."""
    config = config_of(tmp_path)
    before = evaluate.run(config)
    engines.started.clear()
    monkeypatch.setattr(evaluate, "_Engines", None)  # an engine cannot be opened
    same = evaluate.run(config, rejudge=True)
    assert same["benchmarks"]["sums"]["rows"] == before["benchmarks"]["sums"]["rows"]
    seen = []

    def stricter(self, question, answer):
        seen.append((answer.text, answer.trajectory.turns[-1].kind, answer.trajectory.finish.value))
        return Score(0.0, details={"length": len(answer.text)})

    monkeypatch.setattr(Sums, "score", stricter)
    assert overall(evaluate.run(config))["value"] == pytest.approx(8 / 12)  # stored scores
    assert overall(evaluate.run(config, rejudge=True))["value"] == 0.0
    assert len(seen) == 12 and {kind for _, kind, _ in seen} == {"answer"}
    assert all("</answer>" in text and finish == "answer" for text, _, finish in seen)


def test_answers_to_another_prompt_are_not_used(tmp_path, monkeypatch, capsys, engines):
    """Catches answers to an old prompt in the table of a new one."""
    config = config_of(tmp_path)
    evaluate.run(config)
    engines.started.clear()
    monkeypatch.setattr(Sums, "suffix", " Be brief.")
    evaluate.run(config)
    assert len(engines.started) == 12
    assert "12 stored answers are not used, since their prompts have changed" in capsys.readouterr().out
    records = list(read_trajectories(run_dir(config) / "trajectories", NAME))
    assert len(records) == 12 and all(record["question"]["text"].endswith("Be brief.") for record in records)


def test_another_configuration_is_refused_or_starts_over(tmp_path, engines):
    """Catches answers of two models or under two limits in one table."""
    config = config_of(tmp_path)
    evaluate.run(config)
    engines.started.clear()
    other = replace(config, agent=replace(config.agent, max_turns=3), model=replace(config.model, init="package:base"))
    with pytest.raises(ConfigError) as refused:
        evaluate.run(other)
    for part in (
        "model.init = 'random' there, 'package:base' here",
        "agent.max_turns = 6 there, 3 here",
        "resume=False",
    ):
        assert part in str(refused.value)
    assert engines.started == [] and len(answers(config)) == 12
    evaluate.run(replace(other, run=replace(other.run, resume=False)))
    assert len(engines.started) == 12 and {a["model"] for a in answers(config)} == {"package:base"}
    allowed = replace(other, engine=replace(other.engine, slots=8), reward=replace(other.reward, format_weight=0.5))
    evaluate.run(allowed)
    assert len(engines.started) == 12


def test_retrained_weights_are_another_model(tmp_path, engines, monkeypatch, capsys):
    """Catches answers of a checkpoint that has been trained on since."""
    from dv2_jax.checkpoint import policy_spec

    config = config_of(tmp_path)
    evaluate.run(config)
    engines.started.clear()
    monkeypatch.setattr(policy_spec, "weights_fingerprint", lambda source, seed: "other")
    assert (
        overall(evaluate.run(config, rejudge=True))["n"] == 12 and engines.started == []
    )  # the old ones, scored again
    evaluate.run(config)
    assert len(engines.started) == 12 and "the weights of random have changed" in capsys.readouterr().out


def test_changed_reward_settings_score_again_without_answering(tmp_path, engines):
    config = config_of(tmp_path)
    first = evaluate.run(config)["evaluate"]["overall"]["reward"]
    engines.started.clear()
    second = evaluate.run(replace(config, reward=replace(config.reward, accuracy_weight=0.4)))
    assert engines.started == [] and second["evaluate"]["overall"]["reward"] < first


def test_several_samples_have_mean_and_pass_rows(tmp_path, engines):
    """Catches samples that count as further questions, and pass@k of the biased kind."""
    config = config_of(tmp_path, "--config.eval.samples=2", "--config.eval.temperature=1")
    results = evaluate.run(config)
    rows = {row["name"]: row for row in results["benchmarks"]["sums"]["rows"]["evaluate"]}
    assert len(engines.started) == 24 and rows["overall"]["n"] == 24
    assert rows["mean@2"]["value"] == rows["overall"]["value"] == pytest.approx(16 / 24)
    assert rows["pass@2"]["value"] == 1.0 and rows["pass@2"]["n"] == 12  # of three samples in a row, two are right
    seeds = {(a["question_id"], a["sample"]) for a in answers(config)}
    assert len(seeds) == 24
    with pytest.raises(ConfigError, match=r"eval.samples = 2, but greedy answers are all alike"):
        evaluate.run(config_of(tmp_path / "b", "--config.eval.samples=2"))


def test_two_scorers_score_the_same_answers(tmp_path, engines, monkeypatch):
    """Catches a second scorer that needs new answers, or disagreements that nobody sees."""

    def released(self, question, answer):
        return (
            Score(None, "no verdict", is_undecided=True) if question.answer == "2" else Score(float("1" in answer.text))
        )

    monkeypatch.setattr(Sums, "score_deepeyesv2", released)
    config = config_of(tmp_path)
    evaluate.run(config)
    engines.started.clear()
    both = replace(config, eval=replace(config.eval, scorers=("official", "deepeyesv2")))
    entry = evaluate.run(both)["benchmarks"]["sums"]
    assert engines.started == []
    (other,) = [row for row in entry["scorers"]["deepeyesv2"]["evaluate"] if row["name"] == "overall"]
    assert (other["n"], other["undecided"], other["failed"]) == (11, 1, 0)
    found = entry["disagreements"]["evaluate"]["deepeyesv2"]
    lines = (run_dir(config) / "results" / "sums.disagreements.jsonl").read_text().splitlines()
    assert found["answers"] == 12 and found["only_one_decides"] == 1
    assert found["equal"] + found["higher"] + found["lower"] + found["only_one_decides"] == 12
    assert len(lines) == 12 - found["equal"] and json.loads(lines[0])["official"]["outcome"] in ("correct", "wrong")
    page = (run_dir(config) / "report" / "index.html").read_text()
    assert "<h2>Benchmark sums, scorer deepeyesv2</h2>" in page and "scorer deepeyesv2 agrees on" in page
    rows = list(csv.DictReader(table(both).decode().splitlines()))
    assert {row["scorer"] for row in rows} == {"official", "deepeyesv2"}


@pytest.mark.parametrize("scorers", [("oficial",), (), ("official", "official")])
def test_an_unknown_scorer_is_refused(tmp_path, scorers):
    config = config_of(tmp_path)
    with pytest.raises(ConfigError, match=r"eval.scorers = .*: use one or more of official and deepeyesv2"):
        evaluate.run(replace(config, eval=replace(config.eval, scorers=scorers)))


def test_a_scorer_that_raises_costs_one_answer(tmp_path, monkeypatch):
    def raises(self, question, answer):
        return Score(1.0) if question.answer != "6" else {}["six"]

    monkeypatch.setattr(Sums, "score", raises)
    config = config_of(tmp_path, "--config.eval.max_failed_fraction=0.05")
    with pytest.raises(
        RunFailure, match=r"sums, evaluate: 1 answers failed \(8.3%\), more than eval.max_failed_fraction"
    ):
        evaluate.run(config)
    stored = json.loads((run_dir(config) / "results" / "sums.json").read_text())
    assert stored["failures"] == {"evaluate": {"sum-0003": "score: KeyError: 'six'"}}
    assert overall({"benchmarks": {"sums": stored}})["n"] == 11


class Rows(list):
    """A lazy sequence of which a row is broken."""

    def ids(self):
        return [f"sum-{i:04d}" for i in range(len(self))]

    def __getitem__(self, index):
        if index == 5:
            raise ConfigError("rows.tsv, row 5: the image cell is no base64")
        return super().__getitem__(index)


def test_a_broken_row_is_a_failed_answer_and_costs_no_other(tmp_path, monkeypatch, engines):
    """Catches a run that ends at a broken row, and one that takes it for a wrong answer."""
    original = Sums.load
    monkeypatch.setattr(Sums, "load", lambda self, config, read: Rows(original(self, config, read)))
    config = config_of(tmp_path)
    row = overall(evaluate.run(config))
    assert (row["n"], row["failed"]) == (11, 1)
    (broken,) = [a for a in answers(config) if a["failure"]]
    assert broken["failure"] == "the row cannot be used: rows.tsv, row 5: the image cell is no base64"
    monkeypatch.setattr(Sums, "load", original)  # the file has been fixed
    engines.started.clear()
    assert overall(evaluate.run(config))["n"] == 12 and engines.started == ["sum-0005"]


def test_an_outage_of_the_judge_loses_no_answer(tmp_path, monkeypatch, engines):
    """Catches answers that are lost, or asked for again, because the judge was away."""
    original = Sums.score

    def outage(self, question, answer):
        raise ServiceOutage("the judge at http://judge/v1 has given no verdict for 300 s")

    monkeypatch.setattr(Sums, "score", outage)
    config = config_of(tmp_path)
    with pytest.raises(ServiceOutage, match="no verdict for 300 s"):
        evaluate.run(config)
    stored = len(answers(config))
    assert stored > 0
    monkeypatch.setattr(Sums, "score", original)
    engines.started.clear()
    assert overall(evaluate.run(config))["n"] == 12 and len(engines.started) == 12 - stored


@pytest.mark.parametrize("records", ["trajectories", "scores"])
def test_a_full_disk_ends_with_one_sentence_and_the_same_command_continues(tmp_path, engines, records):
    """Catches a traceback, an incomplete line, and stored answers that are asked for again."""
    config = config_of(tmp_path)
    folder = run_dir(config) / records
    folder.mkdir(parents=True)
    path = folder / f"{NAME}.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(StorageFailure, match=r"sums.jsonl: No space left on device; every answer before is stored"):
        evaluate.run(config)
    path.unlink()
    stored = len(answers(config)) if records == "scores" else 0
    engines.started.clear()
    assert overall(evaluate.run(config))["n"] == 12 and len(engines.started) == 12 - stored


def test_a_line_that_does_not_fit_is_removed_again(tmp_path):
    """Catches half a line after a full disk, which the next writer would continue."""
    import resource
    import signal

    file = RecordFile(tmp_path / "a.jsonl")
    file.append({"text": "x" * 50})
    size = (tmp_path / "a.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))  # a part of the next line fits
    try:
        with pytest.raises(StorageFailure, match="run the same command again"):
            file.append({"text": "y" * 50})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert (tmp_path / "a.jsonl").stat().st_size == size
    assert file.append({"text": "z"}) == size
    file.close()
    assert [line["text"][0] for _, line in read_lines(tmp_path / "a.jsonl")] == ["x", "z"]


def test_a_limit_of_time_stops_and_the_same_command_continues(tmp_path, engines, monkeypatch):
    """Catches a limit that loses answers on their way, or ends without saying why."""
    from dv2_jax.evaluation import run_budget

    clock, limits = iter(range(0, 100_000_000, 600)), run_budget.Budget.of_run  # ten minutes pass between two polls
    monkeypatch.setattr(run_budget.Budget, "of_run", lambda *given: replace(limits(*given), clock=lambda: next(clock)))
    config = config_of(tmp_path, "--config.eval.max_hours=1")
    with pytest.raises(RunFailure, match=r"stopped after 1.* hours \(eval.max_hours = 1\): .*same command continues"):
        evaluate.run(config)
    stored = len(answers(config))
    assert 0 < stored == len(engines.started) < 12
    unfinished = json.loads((run_dir(config) / "results.json").read_text())
    assert unfinished["benchmarks"]["sums"]["unanswered"] == {"evaluate": 12 - stored}
    monkeypatch.undo()
    monkeypatch.setattr(evaluate, "_Engines", ScriptedEngines)
    results = evaluate.run(config)
    assert overall(results)["n"] == 12 and "unanswered" not in results["benchmarks"]["sums"]


def test_the_first_interrupt_finishes_what_is_on_its_way(tmp_path, engines, monkeypatch):
    """Catches Ctrl-C that loses answers which the engine has begun."""

    def interrupts(trajectory_id, turn):
        if len(engines.started) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return scripted_evaluation.script(trajectory_id, turn)

    monkeypatch.setattr(engines, "script", staticmethod(interrupts))
    config = config_of(tmp_path)
    with pytest.raises(RunFailure, match="stopped by SIGINT: every answer is stored, and the same command continues"):
        evaluate.run(config)
    assert 3 <= len(answers(config)) == len(engines.started) < 12


def test_the_plan_counts_what_is_missing_and_starts_nothing(tmp_path, engines, monkeypatch, capsys):
    config = config_of(tmp_path, "--config.eval.tool_sets=protocol,none")
    monkeypatch.setenv("COLUMNS", "120")
    evaluate.plan(config)
    shown = capsys.readouterr().out
    assert engines.started == [] and "unknown" in shown and "result, without" in shown
    evaluate.run(config)
    monkeypatch.setenv(scripted_evaluation.COUNT, "20")
    engines.started.clear()
    evaluate.plan(config)
    (line, second) = [line for line in capsys.readouterr().out.splitlines() if "│ sums" in line]
    evaluate.plan(
        replace(config, run=replace(config.run, resume=False))
    )  # would start over, but a plan removes nothing
    assert "│      0 │" in capsys.readouterr().out and len(answers(config)) == 12
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells[:6] == ["result", "sums", "20", "12", "0", "8"] and int(cells[6].replace(",", "")) > 0
    assert engines.started == []


def test_tool_sets_are_stages_of_their_own(tmp_path, engines, monkeypatch):
    """Catches two sets of tools in one table or file, and a policy that has tools its protocol does not have."""
    monkeypatch.setattr(Sums, "tools", ("code",))
    config = config_of(
        tmp_path, "--config.eval.tool_sets=protocol,none,all,code+search", "--config.eval.baselines=no_tools"
    )
    results = evaluate.run(config)
    names = ["evaluate", "evaluate-none", "evaluate-all", "evaluate-code.search", "no_tools"]
    assert [stage["name"] for stage in results["stages"]] == names
    assert len({stage["title"] for stage in results["stages"]}) == 5 and len(engines.started) == 5 * 12
    tools = {
        name: next(read_trajectories(run_dir(config) / "trajectories", f"{name}@sums"))["answer"]["tools"]
        for name in names
    }
    assert tools == {
        "evaluate": ["code"],
        "evaluate-none": [],
        "evaluate-all": ["code", "search", "image_search"],
        "evaluate-code.search": ["code", "search"],
        "no_tools": ["code"],
    }
    protocols = results["benchmarks"]["sums"]["protocols"]
    assert protocols["evaluate"] == (
        "scorer official; tools code; no judge; 1 sample at temperature 0; 12 rows; exact number"
    )
    assert "tools code (every call refused)" in protocols["no_tools"]
    with pytest.raises(ConfigError, match="eval.tool_sets: 'cod' is none of protocol, none"):
        evaluate.run(config_of(tmp_path / "b", "--config.eval.tool_sets=cod"))


def test_other_benchmarks_of_the_run_do_not_move_records(tmp_path, engines):
    """Catches answers that are asked for again because another benchmark became the first."""
    config = config_of(tmp_path)
    evaluate.run(config)
    engines.started.clear()
    digits = "tests.extension.digits_benchmark:DigitsBenchmark"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "script", staticmethod(lambda name, turn: "<think>x</think>\n<answer>1</answer>"))
        benchmarks = (digits, *config.eval.benchmarks)
        results = evaluate.run(replace(config, eval=replace(config.eval, benchmarks=benchmarks)))
    assert all(name.startswith("digits") for name in engines.started)
    assert overall(results)["value"] == pytest.approx(8 / 12)
