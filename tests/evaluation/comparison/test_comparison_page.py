import json
import re
from html.parser import HTMLParser

import pytest

from dv2_jax import compare
from dv2_jax.evaluation.comparison.comparison_page import render_comparison
from dv2_jax.evaluation.comparison.discordant import discordant_questions, shown_questions
from dv2_jax.evaluation.comparison.paired_runs import compare_runs
from dv2_jax.evaluation.comparison.stored_run import open_run
from dv2_jax.report.trajectory_html import transcript
from dv2_jax.telemetry.trajectories import TrajectoryWriter
from tests.evaluation.comparison.stored_evaluations import write_evaluation
from tests.example_trajectories import make, parts, prompt_encoder, tokenizer, trajectories  # noqa: F401

VOID = {"meta", "img", "input", "br", "link"}


class Balance(HTMLParser):
    """Collects elements that are closed in another order than they were opened."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


def open_runs(tmp_path, **outcomes):
    return [open_run(str(write_evaluation(tmp_path / name, values))) for name, values in outcomes.items()]


A = {"q1": 1.0, "q2": 1.0, "q3": 0.0, "q4": 0.0, "q5": None}
B = {"q1": 1.0, "q2": 0.0, "q3": 1.0, "q4": 0.0, "q5": 1.0}


def test_the_page_shows_the_questions_on_which_runs_differ(tmp_path):
    runs = open_runs(tmp_path, first=A, second=B)
    page = render_comparison(compare_runs(runs), runs)
    cards = re.findall(r'<details class="card" data-benchmark="embedded" data-run0="(\w+)" data-run1="(\w+)">', page)
    assert cards == [("right", "wrong"), ("wrong", "right")]
    assert "answer 1 of first" in page and "answer 0 of second" in page
    assert "Question &lt;b&gt;q2&lt;/b&gt;?" in page and "<b>q2</b>" not in page
    assert "no difference is visible at this n (4 questions)" in page
    assert "1 without a score in first" in page
    checker = Balance()
    checker.feed(page)
    assert (checker.wrong, checker.open) == ([], [])


def test_the_page_needs_no_other_file(tmp_path):
    """Catches a link to an image or script that is gone when the page is sent to somebody."""
    runs = open_runs(tmp_path, first=A, second=B)
    page = render_comparison(compare_runs(runs), runs)
    assert not re.search(r'(?:src|href)="(?!https?://)[^"]+"', page)
    images = json.loads(re.search(r'id="images">(.*?)</script>', page, re.DOTALL)[1])
    used = set(re.findall(r'data-image="([^"]+)"', page))
    assert used == set(images) and len(images) == 1
    assert all(value.startswith("data:image/png;base64,") for value in images.values())


def test_every_filter_has_data_of_its_name(tmp_path):
    runs = open_runs(tmp_path, first=A, second=B, third=A)
    page = render_comparison(compare_runs(runs), runs)
    names = re.findall(r'<select name="(\w+)">', page)
    assert names == ["benchmark", "run0", "run1", "run2"]
    card = re.search(r"<details class=\"card\"[^>]*>", page)[0]
    assert all(f"data-{name}=" in card for name in names)


def test_a_page_without_differences_says_so(tmp_path):
    runs = open_runs(tmp_path, first=A, second=A)
    page = render_comparison(compare_runs(runs), runs)
    assert "There are none." in page and 'class="card"' not in page


def test_shown_questions_are_of_every_pattern(tmp_path):
    """Catches a limit that shows only the questions of one direction."""
    a = {f"q{i}": float(i < 90) for i in range(100)}
    b = {f"q{i}": float(i >= 90) for i in range(100)}
    runs = open_runs(tmp_path, first=a, second=b)
    questions = discordant_questions(runs)
    assert len(questions) == 100
    shown = shown_questions(questions, 10)
    assert [question.outcomes for question in shown].count(("right", "wrong")) == 5
    assert len(shown_questions(questions, 1000)) == 100
    page = render_comparison(compare_runs(runs), runs, shown=10)
    assert "10 of 100 questions are shown" in page


def test_the_shown_sample_has_the_outcome_of_the_question(tmp_path):
    runs = open_runs(tmp_path, first={"q": [0.0, 1.0, 1.0]}, second={"q": [1.0, 0.0, 0.0]})
    (question,) = discordant_questions(runs)
    assert (question.outcomes, question.samples) == (("right", "wrong"), (1, 1))


def test_questions_of_one_run_alone_are_not_discordant(tmp_path):
    runs = open_runs(tmp_path, first={"q1": 1.0}, second={"q2": 0.0})
    assert discordant_questions(runs) == []


def test_records_of_the_own_engine_are_shown_token_by_token(tmp_path, trajectories, tokenizer):  # noqa: F811
    with TrajectoryWriter(tmp_path, tokenizer) as writer:
        record = writer.record(trajectories[0])
    assert 'title="log p' in transcript(record, lambda name, caption: "<figure></figure>")


@pytest.mark.parametrize("missing", ["images", "trajectories"])
def test_missing_files_leave_gaps_in_the_page(tmp_path, missing):
    """Catches a page that fails for a run of which only the scores were kept."""
    for name, values in (("first", A), ("second", B)):
        write_evaluation(tmp_path / name, values)
    if missing == "images":
        for path in tmp_path.glob("*/trajectories/*/*"):
            path.unlink()
    else:
        (tmp_path / "second" / "trajectories" / "evaluate.jsonl").unlink()
    compare.main([str(tmp_path / "first"), str(tmp_path / "second"), f"--output={tmp_path / 'page.html'}"])
    page = (tmp_path / "page.html").read_text()
    assert ("image not stored" if missing == "images" else "Not stored.") in page
