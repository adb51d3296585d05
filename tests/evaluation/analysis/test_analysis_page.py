"""Tests page and files of an analysis: the same numbers in both, and sentences for runs without data."""

import csv
import re
import subprocess
import sys

import pytest
from PIL import Image

from dv2_jax.evaluation.analysis.analysis_page import cell
from dv2_jax.evaluation.analysis.figure_tables import STEP_METRICS
from dv2_jax.evaluation.analysis.run_analysis import NO_RECORDS, analyze_run
from tests.evaluation.analysis.hand_made import answered, compute, crop, record, said, search, write_run
from tests.report.test_page import Page


@pytest.fixture
def run_dir(tmp_path):
    used = [
        record("a", crop(), said(), right=True, answer=answered("a")),
        record("b", compute("7"), said(), answer=answered("b")),
        record("c<i>", search(), said(), answer=answered("c<i>")),
        record("d", said(), right=None, dropped=True, answer=answered("d")),
    ]
    none = [record(name, said(), right=name == "b", answer=answered(name, tools=[])) for name in ("a", "b", "c<i>")]
    train = [record("t", crop(), said(), step=step, reward=step / 4, tokens=step) for step in (1, 2, 3)]
    train += [record("u", compute(), said(), step=step, tokens=2 * step) for step in (1, 2, 3)]
    stages = [
        {"name": "evaluate", "title": "result", "init": "x"},
        {"name": "no_tools", "title": "no tools", "init": "x"},
    ]
    made = {"evaluate": used, "no_tools": none, "train": train}
    entry = {"accuracy": 0.3, "tool_rate": 0.7, "tool_calls": 1.0, "reward": 0.4, "n": 3}
    return write_run(tmp_path, made, stages=stages, evaluate={"overall": entry}, no_tools={"overall": entry})


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def page_tables(page):
    """Returns the tables of the page as rows of texts, under their headings."""
    found = []
    for table in re.findall(r"<table class=\"results[ a-z]*\">(.*?)</table>", page, re.DOTALL):
        rows = re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.DOTALL)
        cells = [[re.sub(r"<[^>]+>", "", one) for one in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]
        found.append(cells)
    return found


def test_the_csv_files_hold_the_numbers_of_the_page(run_dir):
    """Catches a page that computes its numbers in another way than the files."""
    analysis = analyze_run(run_dir)
    paths = {path.name for path in analysis.write_figures()}
    page = analysis.write_page().read_text(encoding="utf-8")
    Page(page)
    tables = page_tables(page)
    for name in ("figure6_tool_kinds", "figure8_steps", "figure10_step_kinds"):
        rows = read_csv(run_dir / "report" / "figures" / f"{name}.csv")
        columns = list(rows[0])
        (shown,) = [table for table in tables if table[0] == columns]
        for row, texts in zip(rows, shown[1:], strict=True):
            for column, text in zip(columns, texts, strict=True):
                number = float(row[column]) if re.fullmatch(r"-?[\d.]+(e-?\d+)?", row[column]) else row[column]
                is_integer = isinstance(number, float) and number == int(number) and "." not in row[column]
                assert text == cell(column, int(number) if is_integer else number), (name, column)
    benefit = read_csv(run_dir / "report" / "figures" / "tool_benefit.csv")
    (shown,) = [table for table in tables if table[0][3:4] == ["measure"]]
    for row, texts in zip(benefit, shown[1:], strict=True):
        assert texts[3] == row["measure"] and texts[6] == row["questions"]
        assert row["value"] and float(texts[4].rstrip("%")) == pytest.approx(100 * float(row["value"]), abs=0.051)
    assert "error_cases.csv" in paths and "1 failed" in page and "c&lt;i&gt;" in page
    assert len(STEP_METRICS) == len(re.findall(r'<polygon class="band', page))


def test_every_figure_is_drawn(run_dir):
    drawn = [path for path in analyze_run(run_dir).write_figures() if path.suffix == ".png"]
    assert sorted(path.stem for path in drawn) == [
        "error_classes", "figure10_step_kinds", "figure6_tool_kinds", "figure7_tool_rate", "figure8_steps", "tool_benefit",
    ]  # fmt: skip
    for path in drawn:
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 100


@pytest.mark.parametrize("files", [{}, {"evaluate": []}], ids=["no folder", "empty file"])
def test_a_run_without_records_gets_a_sentence(tmp_path, files):
    analysis = analyze_run(write_run(tmp_path, files))
    assert NO_RECORDS in analysis.write_page().read_text(encoding="utf-8")
    assert analysis.write_figures() == []


def test_the_command_writes_page_and_figures_and_compares_with_another_run(run_dir, tmp_path):
    other = write_run(tmp_path / "other", {"evaluate": [record("c<i>", said(), right=True, answer=answered("c<i>"))]})
    command = [sys.executable, "-m", "dv2_jax.report", str(run_dir), "--figures", "--no-tools", str(other)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names = [line.rsplit("/", 1)[-1] for line in done.stdout.splitlines()]
    assert names[0] == "index.html" and {"tool_benefit.csv", "figure8_steps.png"} < set(names)
    (harm,) = [
        row for row in read_csv(run_dir / "report" / "figures" / "tool_benefit.csv") if row["measure"] == "Tool-Harm"
    ]
    assert (harm["value"], harm["questions"]) == ("1.0", "1")
    done = subprocess.run([*command[:-1], str(tmp_path / "missing")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
