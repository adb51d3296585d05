"""A benchmark from outside the package, in one file, evaluated by the real command together with two others."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dv2_jax.telemetry.trajectories import read_trajectories
from tests.data.row_cases import rl_row
from tests.entry_points.test_evaluate import SMALL
from tests.extension.digits_benchmark import SUMS

ROOT = Path(__file__).resolve().parents[2]
DIGITS = "tests.extension.digits_benchmark:DigitsBenchmark"


def command(*arguments: str) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "dv2_jax.evaluate", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True)


pytestmark = pytest.mark.long  # all tests read one evaluation, which takes a minute


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Returns (run directory, finished process) of one evaluation on a class, the embedded tasks and a file."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "mine.jsonl").write_text((json.dumps(rl_row()) + "\n") * 2)
    shared = [word for word in SMALL if "eval." not in word and "eval_size" not in word and "init" not in word]
    benchmarks = f"{DIGITS},embedded,{folder}/mine.jsonl,tests.extension.digits_benchmark:NoTable"
    done = command(
        *shared,
        f"--config.run.root={folder}",
        "--config.task.eval_size=4",
        "--config.agent.max_turn_tokens=96",
        f"--config.eval.benchmarks={benchmarks}",
        "--config.eval.baselines=guessing",
    )
    return folder / "evaluate", done


def test_each_benchmark_has_its_own_table_file_and_trajectories(evaluated):
    """Catches results of one benchmark under another's name, and old keys that change with several benchmarks."""
    run_dir, done = evaluated
    results = json.loads((run_dir / "results.json").read_text())
    assert list(results["benchmarks"]) == ["digits", "embedded", "mine", "no-table"]
    assert [entry["questions"] for entry in results["benchmarks"].values()] == [4, 4, 2, 4]
    for name in results["benchmarks"]:
        stored = json.loads((run_dir / "results" / f"{name}.json").read_text())
        assert stored["rows"] == results["benchmarks"][name]["rows"]
        stage = "evaluate" if name == "embedded" else f"evaluate@{name}"
        records = list(read_trajectories(run_dir / "trajectories", stage))
        assert len(records) == stored["questions"]
        scored = [record for record in records if not record["dropped"]]
        assert stored["evaluate"]["overall"]["n"] == len(scored)
        right = sum(record["reward_parts"]["accuracy"] for record in scored)
        assert stored["evaluate"]["overall"]["accuracy"] == pytest.approx(right / len(scored))
    assert results["questions"] == 4 and results["evaluate"]["overall"]["n"] == 4
    assert results["guessing"] == results["benchmarks"]["embedded"]["guessing"]
    assert "guessing" not in results["benchmarks"]["digits"]
    overall = results["benchmarks"]["embedded"]["rows"]["evaluate"][-1]
    assert (overall["name"], overall["value"]) == ("overall", results["evaluate"]["overall"]["accuracy"])
    assert overall["interval"] == results["evaluate"]["overall"]["accuracy_interval"]


def test_its_prompt_score_and_table_are_used(evaluated):
    """Catches a default in place of what the class overrides, and a failure that counts as wrong."""
    run_dir, done = evaluated
    records = {r["question"]["id"]: r for r in read_trajectories(run_dir / "trajectories", "evaluate@digits")}
    assert records["digits-two"]["question"]["text"] == "two: name a number. Reply with digits only."
    stored = json.loads((run_dir / "results" / "digits.json").read_text())
    values = {}
    for name in ("two", "three"):  # counted in the stored text, apart from the class
        final = re.findall(r"<answer>(.*?)</answer>", records[f"digits-{name}"]["turns"][-1]["text"], re.DOTALL)
        digits = str(SUMS[name])
        values[name] = sum(d in final[0] for d in digits) / len(digits) if final else 0.0
    worst, asked, overall = stored["rows"]["evaluate"]
    assert worst["value"] == min(values.values()) and worst["interval"] is None
    assert (asked["name"], asked["n"]) == ("digits asked", 4)
    assert (overall["n"], overall["failed"]) == (2, 2)
    assert overall["value"] == pytest.approx(sum(values.values()) / 2)
    assert stored["failures"]["evaluate"] == {
        "digits-broken": "score: KeyError: 'no such digit'",
        "digits-silent": "not to be scored",
    }
    assert [records[f"digits-{name}"]["dropped"] for name in SUMS] == [False, False, True, True]


def test_the_command_and_the_report_show_every_table(evaluated):
    run_dir, done = evaluated
    page = (run_dir / "report" / "index.html").read_text()
    for name in ("digits", "embedded", "mine"):
        assert f"{name}: " in done.stdout and f"<h2>Benchmark {name}</h2>" in page
    assert "digits asked" in done.stdout and "<td>digits asked</td>" in page
    assert "95 % interval" in done.stdout and "failed" in done.stdout
    assert "evaluation, digits" in page


def test_a_table_that_cannot_be_made_costs_nothing_but_itself(evaluated):
    """Catches an exception of a benchmark's own code that ends the run before its answers and the others are stored."""
    run_dir, done = evaluated
    message = "benchmark 'no-table': aggregate: KeyError: 'overall'"
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == f"error: {message}"
    results = json.loads((run_dir / "results.json").read_text())
    assert results["benchmarks"]["no-table"]["error"] == message
    assert len(list(read_trajectories(run_dir / "trajectories", "evaluate@no-table"))) == 4


def test_the_list_has_registered_and_configured_benchmarks():
    """Catches a listing that loads the questions or leaves out what the command line names."""
    done = command("--list", f"--config.eval.benchmarks={DIGITS}", "--config.task.eval_size=321")
    assert done.returncode == 0, done.stderr
    table = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    rows = {cells[1]: cells for cells in table}
    assert rows["embedded"] == ["", "embedded", "generated", "321", "–", "–"]
    assert rows["digits"] == ["*", "digits", "made here", "4", "–", "–"]
