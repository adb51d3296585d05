"""Tests the exports: counts, scores, messages and numbers of each format, from records written by hand.

`.ci/exports.sh` reads the same files with inspect-ai, every-eval-ever and ms-vlmeval themselves.
"""

import json
import math
import subprocess
import sys

import openpyxl
import pytest
from PIL import Image

from dv2_jax.config import ConfigError
from dv2_jax.evaluation.exports.export_format import EXPORT_FORMATS
from dv2_jax.evaluation.exports.exported_run import ExportedRun
from dv2_jax.evaluation.exports.vlmevalkit import tsv_rows, write_workbook
from dv2_jax.evaluation.readers.tsv_file import TsvFile
from dv2_jax.export_evaluation import run as export
from tests.evaluation.analysis.hand_made import answered, compute, crop, record, said, scored, write_run


@pytest.fixture
def run_dir(tmp_path):
    """Right, wrong, half right, no answer, an undecided and a failed verdict; the right answer crops and computes first."""
    info = {"benchmark": "mine", "prompt_tokens": 10, "completion_tokens": 5, "seconds": 2.0, "model": "org/model"}
    turns = [crop(), compute("42"), said("Paris")]
    made = [
        record("a", *turns, answer=answered("a", final="Paris", **info)),
        record("b", said("=1+1"), answer=answered("b", final="=1+1", **info)),
        record("c", said("half"), answer=answered("c", final="half", **info)),
        record("d", said(), answer=answered("d", failure="no reply", **info)),
        record("e", said(), answer=answered("e", **info)),
        record("f", said(), answer=answered("f", **info)),
    ]
    for position, one in enumerate(made):
        one["time"] = 1000.0 + position
    lines = [
        scored("a", 1.0),
        scored("b", 0.0),
        scored("c", 0.5),
        scored("e", None, is_undecided=True),
        scored("f", None),
    ]
    rows = [{"name": "overall", "value": 0.5, "interval": [0.1, 0.9], "n": 3, "failed": 2, "undecided": 1}]
    stages = [{"name": "evaluate", "title": "result", "init": "org/model"}]
    benchmarks = {"mine": {"rows": {"evaluate": rows}}}
    run = write_run(tmp_path / "run", {"evaluate": made}, {"evaluate": lines}, stages=stages, benchmarks=benchmarks)
    folder = run / "trajectories" / "pictures"
    folder.mkdir()
    Image.new("RGB", (9, 9)).save(folder / "question.png")
    return run


def test_the_inspect_log_has_every_answer_and_scores_those_with_a_verdict(run_dir, tmp_path):
    """Catches failed answers in the mean, and undecided ones scored as wrong."""
    (path,) = export(run_dir, "inspect", tmp_path)
    log = json.loads(path.read_text())
    assert (
        list(log)[:4] == ["version", "status", "eval", "plan"] and list(log)[-1] == "samples"
    )  # the header comes first
    assert (log["eval"]["task"], log["eval"]["model"], log["eval"]["dataset"]["samples"]) == ("mine", "org/model", 6)
    results = log["results"]
    assert (results["total_samples"], results["completed_samples"]) == (6, 3)
    metrics = results["scores"][0]["metrics"]
    assert metrics["accuracy"]["value"] == 0.5 and metrics["row: overall"]["metadata"]["failed"] == 2
    assert metrics["stderr"]["value"] == pytest.approx(math.sqrt(3 / 2 * 0.5) / 3)
    values = {sample["id"]: sample.get("scores", {}).get("official", {}).get("value") for sample in log["samples"]}
    assert (
        (values["a"], values["b"], values["c"], values["d"]) == ("C", "I", 0.5, None)
        and math.isnan(values["e"])
        and math.isnan(values["f"])
    )
    assert log["samples"][3]["error"]["message"] == "no reply" and "scores" not in log["samples"][3]
    assert log["stats"]["model_usage"]["org/model"] == {"input_tokens": 60, "output_tokens": 30, "total_tokens": 90}


def test_messages_hold_the_calls_and_what_tools_returned(run_dir, tmp_path):
    (path,) = export(run_dir, "inspect", tmp_path)
    sample = json.loads(path.read_text())["samples"][0]
    roles = [message["role"] for message in sample["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    call = sample["messages"][3]["tool_calls"][0]
    assert (call["function"], call["arguments"]) == ("code", {"input": "print(sum([1, 2]))"})
    assert sample["messages"][4]["tool_call_id"] == call["id"] and "42" in sample["messages"][4]["content"]
    assert sample["messages"][5]["content"][0] == {"type": "reasoning", "reasoning": "I know."}
    assert (sample["output"]["completion"], sample["target"]) == ("Paris", ["Paris"])
    assert sample["metadata"]["tool_calls"] == 2 and sample["input"] == sample["messages"][:1]


def test_images_are_embedded_on_request(run_dir, tmp_path):
    plain = export(run_dir, "inspect", tmp_path / "names")[0].read_text()
    assert "data:image" not in plain and "[image shown.png]" in plain
    records = run_dir / "trajectories" / "evaluate.jsonl"
    marked = records.read_text().replace("user\\nQ<|im_end|>", "user\\n\\ufffcQ<|im_end|>")
    records.write_text(marked)
    sample = json.loads(export(run_dir, "inspect", tmp_path / "images", with_images=True)[0].read_text())["samples"][1]
    kinds = [part["type"] for part in sample["messages"][0]["content"]]
    assert kinds == ["image", "text"] and sample["messages"][0]["content"][1]["text"] == "Q"


def test_every_eval_ever_files_refer_to_each_other(run_dir, tmp_path):
    aggregate, samples = export(run_dir, "every_eval_ever", tmp_path)
    document = json.loads(aggregate.read_text())
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert aggregate.relative_to(tmp_path).parts[:4] == ("data", "mine", "org", "model")
    assert document["detailed_evaluation_results"]["file_path"] == samples.relative_to(tmp_path).as_posix()
    assert document["detailed_evaluation_results"]["total_rows"] == len(lines) == 6
    (result,) = document["evaluation_results"]
    assert result["score_details"]["score"] == 0.5 and result["score_details"]["details"]["failed"] == "2"
    assert {line["evaluation_id"] for line in lines} == {document["evaluation_id"]}
    scores = {
        line["sample_id"]: (line["evaluation"]["score"], line["metadata"]["outcome"], line["error"]) for line in lines
    }
    assert scores["a"] == (1.0, "correct", None) and scores["c"] == (0.5, "wrong", None)
    assert scores["d"] == (0.0, "failed", "no reply") and scores["e"][1:] == ("undecided", "no reply")
    assert export(run_dir, "every_eval_ever", tmp_path) == [aggregate, samples]  # replaced, not written twice


def sheet(path):
    rows = list(openpyxl.load_workbook(path).active.iter_rows(values_only=True))
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_predictions_without_a_published_file_come_from_the_records(run_dir, tmp_path):
    (path,) = export(run_dir, "vlmevalkit", tmp_path)
    assert path.relative_to(tmp_path).as_posix() == "org-model-evaluate/org-model-evaluate_mine.xlsx"
    rows = sheet(path)
    assert [row["index"] for row in rows] == ["a", "b", "c", "e", "f"]  # d has no answer
    assert list(rows[0]) == ["index", "question", "answer", "prediction"]
    assert [row["prediction"] for row in rows[:3]] == ["Paris", "=1+1", "half"]


def test_rows_of_a_published_file_keep_their_columns_and_types(tmp_path):
    """Catches numbers written as text, which the kit then compares with numbers, and image cells in the workbook."""
    table = tmp_path / "Tiny.tsv"
    table.write_text(
        "index\timage\tquestion\tA\tB\tanswer\tlevel\n1\t\tq\t1\tx\tB\t7\n2\t\tr\t2\ty\tA\t\n3\t\ts\t3\tz\tA\t9\n"
    )
    rows = tsv_rows(TsvFile(table), {"1": "=B", "3": "A\x07"})
    write_workbook(tmp_path / "out.xlsx", rows)
    first, last = sheet(tmp_path / "out.xlsx")
    assert first == {
        "index": 1, "question": "q", "A": 1, "B": "x", "answer": "B", "level": 7, "prediction": "=B",
    }  # fmt: skip
    assert (last["index"], last["prediction"]) == (3, "A")


def test_runs_of_earlier_versions_are_exported(tmp_path):
    made = [
        record("a", said("Paris"), right=True),
        record("b", said(), right=False),
        record("c", right=None, dropped=True),
    ]
    run = write_run(tmp_path / "run", {"rl": made, "train": [record("t", step=1)]}, rl={"overall": {}})
    (path,) = export(run, "inspect", tmp_path)
    log = json.loads(path.read_text())
    assert (
        log["results"]["completed_samples"] == 2 and log["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 0.5
    )
    assert [sample["output"]["completion"] for sample in log["samples"][:2]] == ["Paris", "wrong"]
    aggregate, _ = export(run, "every_eval_ever", tmp_path)
    assert json.loads(aggregate.read_text())["evaluation_results"][0]["score_details"]["score"] == 0.5


def test_errors_are_sentences(tmp_path):
    with pytest.raises(ConfigError, match="no such run directory"):
        ExportedRun.read(tmp_path / "missing")
    with pytest.raises(ConfigError, match="no records of answers"):
        ExportedRun.read(tmp_path)
    with pytest.raises(ConfigError, match="there are every_eval_ever, inspect, vlmevalkit"):
        export(tmp_path, "csv", tmp_path)
    assert sorted(EXPORT_FORMATS.names()) == ["every_eval_ever", "inspect", "vlmevalkit"]


def test_the_command_prints_the_paths(run_dir, tmp_path):
    command = [
        sys.executable,
        "-m",
        "dv2_jax.export_evaluation",
        str(run_dir),
        "--format=inspect",
        f"--output={tmp_path}/x",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/x/evaluate_mine.json\n"
    command[3] = str(tmp_path)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
