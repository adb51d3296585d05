"""Tests the page of a curation: pairs are shown with the images of both, the first of very many.

Catches: pairs of which only one image is shown, and pairs for review that are hidden behind dropped ones.
"""

from __future__ import annotations

import csv
import json
import re
from types import SimpleNamespace

import pytest

from dv2_jax import curate
from dv2_jax.config import load
from dv2_jax.curation import curation_page
from dv2_jax.telemetry.trajectories import image_file_name
from tests.data.row_cases import png

TEXT = "How many of the small round objects on the table are there in total, counting the partly hidden ones?"


def write_rows(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([("id", "question", "answer", "image"), *rows])


@pytest.fixture
def page(tmp_path):
    """Returns the page of two rows about one image, of which a benchmark also asks."""
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / f"{name}.png").write_bytes(png(size=(64, 64), seed=seed))
    write_rows(
        tmp_path / "rows.csv", [("1", TEXT, "3", "a.png"), ("2", TEXT, "3", "a.png"), ("3", "Why?", "x", "b.png")]
    )
    held = {
        "data_source": "perception",
        "prompt": [
            {"role": "user", "content": "<image>\nWhich color has the sky above the old town in this photograph?"}
        ],
        "images": [{"image": "b.png"}],
        "reward_model": {"ground_truth": "x", "style": "rule"},
        "extra_info": {"index": "h"},
    }
    (tmp_path / "held.jsonl").write_text(json.dumps(held) + "\n")
    settings = load(
        [
            f"--config.run.root={tmp_path}",
            f"--config.curate.sources=mine={tmp_path / 'rows.csv'}",
            "--config.curate.stages=read,deduplicate,mix",
            f"--config.curate.benchmarks={tmp_path / 'held.jsonl'}",
        ],
        command="curate",
        default_config="configs/curate.py",
    )
    curate.run(settings)
    return (tmp_path / "curate" / "report" / "index.html").read_text(), tmp_path / "curate"


def test_a_pair_is_shown_with_both_images(page):
    text, folder = page
    assert text.count("mine/2 and mine/1 (rows): same image and equal question") == 1
    assert re.search(r"mine/3 and \S+ \(benchmark\): same image", text)
    assert text.count("<img") == 4 and (folder / "images" / image_file_name(png(size=(64, 64), seed=2))).exists()


def test_pairs_for_review_come_first_and_the_rest_is_counted(page, monkeypatch):
    monkeypatch.setattr(curation_page, "SHOWN_PAIRS", 1)
    rows = [
        {"id": id_, "images": [], "pairs": [{"drop": drop, "other": "x", "set": "benchmark", "reason": "because"}]}
        for id_, drop in (("first", True), ("second", False), ("third", True))
    ]
    text = curation_page.pairs(rows, SimpleNamespace(folder=page[1]))
    assert "second" in text and "first" not in text and "2 more in provenance.jsonl" in text
