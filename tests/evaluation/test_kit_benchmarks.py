"""Tests the benchmarks of VLMEvalKit: their files, the judge that they ask or lack, and the released evaluation's rules."""

from __future__ import annotations

import base64
import csv
import io
from dataclasses import replace

import pytest
from PIL import Image

from dv2_jax.config import Config, ConfigError, EvalConfig
from dv2_jax.evaluation.benchmarks.benchmark import Score
from dv2_jax.evaluation.benchmarks.benchmark_registry import BENCHMARKS
from dv2_jax.evaluation.benchmarks.kit_benchmark import KitBenchmark
from dv2_jax.evaluation.benchmarks.wemath import WeMath
from dv2_jax.rollout.question_sources import read_rows
from tests.evaluation.scorers.our_verdicts import GivenReplies, answer_of, benchmark_of, question_of

ROW = {"question": "Which color?", "answer": "B", "A": "red", "B": "blue", "C": "green", "D": "black", "category": "x"}
NAMES = [
    "vstar", "hrbench4k", "hrbench8k", "mme_realworld", "mme_realworld_lite", "treebench", "ocrbench", "seedbench2_plus",
    "chartqa", "charxiv_descriptive", "charxiv_reasoning", "mathvista", "mathverse", "mathvision", "wemath", "dynamath",
    "logicvista", "simplevqa_kit", "treebench_deepeyesv2",
]  # fmt: skip
CELLS = {
    "cycle_category": "0", "multi-choice options": "['(A) red', '(B) blue']", "target_instances": "[[0, 0, 1, 1]]", "qid": "3",
    "split": "test_human", "inst_category": "2", "grading_query": "{PREDICTION}?", "question_type": "free_form",
    "answer_type": "integer", "choices": "[]", "answer_option": "", "task": "t", "skills": "['s']", "skill": "inductive",
    "problem_version": "Text Lite", "question_for_eval": "q", "ID": "7", "key": "2steps_1", "subject": "s", "knowledge_level": "l",
}  # fmt: skip


def png(color: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(stream, "PNG")
    return stream.getvalue()


def write(folder, name: str, rows: list[dict[str, str]]) -> None:
    with (folder / name).open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def config_of(folder) -> Config:
    return replace(Config(), eval=EvalConfig(data=str(folder)))


def test_all_are_registered():
    """Catches a benchmark whose module does not register it, and one without a protocol line or a file name."""
    registered = {name: BENCHMARKS.get(name)() for name in NAMES}
    for name, benchmark in registered.items():
        assert isinstance(benchmark, KitBenchmark) and benchmark.name == name
        assert benchmark.files[0].endswith(".tsv") and "0.0.20" in benchmark.protocol or "gpt-4o" in benchmark.protocol
        assert benchmark.tools == ("code",) and benchmark.published_rows and benchmark.title


@pytest.mark.parametrize("name", NAMES)
def test_a_file_in_the_published_format_is_loaded(name, tmp_path):
    """Catches a column that a benchmark needs and does not name, and images of another row."""
    benchmark = benchmark_of(name)
    images = [base64.b64encode(png(color)).decode() for color in ("red", "blue")]
    rows = [
        {"index": str(i), "image": images[i % 2], **{column: "" for column in benchmark.columns}, **ROW, **CELLS}
        for i in range(3)
    ]
    write(tmp_path, benchmark.files[-1], rows)
    questions = benchmark.load(config_of(tmp_path), read_rows)
    assert [question.id for question in questions] == ["0", "1", "2"]
    assert [question.images for question in questions] == [(png("red"),), (png("blue"),), (png("red"),)]
    clusters = [benchmark.cluster(question) for question in questions]
    assert clusters[0] == clusters[2]
    assert (clusters[0] != clusters[1]) == (name not in ("mathverse", "wemath", "dynamath"))
    assert questions[1].text in benchmark.prompt(questions[1])
    if name == "ocrbench":
        with pytest.raises(ValueError, match="row 1: answer 'B' is no list"):
            benchmark.score(questions[1], answer_of("B"))
        questions = [replace(question, answer="['B']") for question in questions]
    judge = GivenReplies("1")
    for score in (benchmark.score, benchmark.score_deepeyesv2):
        for prediction in ("B", "", "a long reply that names none of them", "<answer>B</answer>", "\u4e0d\u77e5\u9053"):
            scored = score(questions[1], answer_of(prediction, judge, last_turn=prediction))
            assert scored.cluster == clusters[1]
            assert benchmark.aggregate([scored])[-1].name == "overall"


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_another_version_is_refused(name, tmp_path):
    """Catches a missing column that becomes wrong answers."""
    benchmark = benchmark_of(name)
    write(tmp_path, benchmark.files[0], [{"index": "0", "image": "", "query": "x", "label": "y"}])
    with pytest.raises(ConfigError, match="no column .*question.*it has the columns index, image, query, label"):
        benchmark.load(config_of(tmp_path), read_rows)


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        ("vstar", "I cannot see it"), ("wemath", "I cannot see it"), ("mathvista", "it is seven"), ("mathvision", "it is seven"),
        ("mathverse", "7"), ("charxiv_reasoning", "7"), ("simplevqa_kit", "x"), ("logicvista", "it is the left one"),
        ("dynamath", "it is seven"), ("hrbench4k", "<answer>B</answer>"),
    ],
)  # fmt: skip
def test_without_a_judge_an_undecided_answer_is_failed(name, prediction):
    """Catches an answer that counts as wrong, or as a random option, because there is no judge."""
    benchmark = benchmark_of(name)
    question = question_of(benchmark, ROW | CELLS | {"answer_type": "float" if name == "dynamath" else "integer"})
    for score in (benchmark.score, benchmark.score_deepeyesv2):
        found = score(question, answer_of(prediction, last_turn=f"<answer>{prediction}</answer>"))
        assert found.outcome == "failed" and found.failure.startswith("needs a judge: ")


def test_a_judge_is_asked_once_and_only_where_rules_fail():
    """Catches a judge that is asked about what the rules decide, and a silent retry."""
    benchmark, judge = benchmark_of("vstar"), GivenReplies("B")
    question = question_of(benchmark, ROW)
    assert benchmark.score(question, answer_of("red", judge)).value == 0 and judge.asked == []
    assert benchmark.score(question, answer_of("the color of the sky", judge)).value == 1 and len(judge.asked) == 1
    assert "the color of the sky" in judge.asked[0][0]["content"] and "B. blue" in judge.asked[0][0]["content"]
    unreadable = benchmark.score(question, answer_of("the sky", GivenReplies("no idea")))
    assert unreadable.outcome == "undecided" and "no idea" in unreadable.failure


def test_charxiv_sends_the_prompt_of_the_row_with_the_published_sampling():
    benchmark, judge = benchmark_of("charxiv_reasoning"), GivenReplies('{"extract_answer": "7", "score": 1}')
    question = question_of(benchmark, ROW | CELLS)
    assert benchmark.score(question, answer_of("seven", judge)).value == 1
    assert judge.asked == [[{"role": "user", "content": "seven?"}]]
    assert judge.sampling == [{"temperature": 0, "max_tokens": 256, "seed": 42, "top_p": 1}]
    assert question.skill == "Text-in-General"


def test_the_released_rules_differ_where_documented():
    """Catches a scorer `deepeyesv2` that repairs the released evaluation."""
    chartqa = benchmark_of("chartqa")
    question = question_of(chartqa, {"question": "How many?", "answer": "100", "split": "test_human"})
    near = answer_of("105.1", last_turn="<answer>105.1</answer>")
    assert chartqa.score(question, near).value == 0 and chartqa.score_deepeyesv2(question, near).value == 1
    far = answer_of("95.1", last_turn="<answer>95.1</answer>")  # 5.2 % of the prediction
    assert chartqa.score(question, far).value == 1 and chartqa.score_deepeyesv2(question, far).value == 0
    judge = GivenReplies("yes")
    words = answer_of("a hundred", judge, last_turn="<answer>a hundred</answer>")
    assert chartqa.score(question, words).value == 0 and chartqa.score_deepeyesv2(question, words).value == 1
    assert judge.asked == [("How many?", ("a hundred",), "100", "consistency")]  # roles are swapped

    vstar = benchmark_of("vstar")
    refusal = answer_of("x", GivenReplies("yes"), last_turn="Cannot determine the answer")
    assert vstar.score_deepeyesv2(question_of(vstar, ROW), refusal).value == 1
    wrong = answer_of("x", GivenReplies("yes"), last_turn="<answer>A</answer>")
    assert vstar.score_deepeyesv2(question_of(vstar, ROW), wrong).value == 0  # an option was read: no rubric

    vision = benchmark_of("mathvision")
    boxed = question_of(vision, ROW | {"answer": r"\boxed{x+1}", "choices": "[]"})
    reply = answer_of("long", GivenReplies(r"\(x+1\)"), last_turn="long")
    assert vision.score(boxed, reply).value == 0 and vision.score_deepeyesv2(boxed, reply).value == 1

    released = benchmark_of("treebench_deepeyesv2")
    cells = ROW | CELLS | {"multi-choice options": "A. red\nB. blue\n"}
    assert "A. red" not in released.prompt(question_of(released, cells | {"category": "Perception/OCR"}))
    assert "A. red" in released.prompt(question_of(released, cells | {"category": "Perception/Material"}))


@pytest.mark.parametrize(
    ("last_turn", "value"),
    [
        ("<think>x</think><answer>B</answer>", 1.0),
        ("<answer>B</answer><answer>A</answer>", 1.0),
        ("so B", 1.0),
        ("<answer>B", None),
    ],
)
def test_the_released_evaluation_scores_the_first_answer_or_the_entire_response(last_turn, value):
    benchmark = benchmark_of("vstar")
    assert benchmark.score_deepeyesv2(question_of(benchmark, ROW), answer_of("x", last_turn=last_turn)).value == value


def test_a_bare_wrong_number_needs_no_judge():
    """Catches a rate of correct answers in which only wrong ones are missing, because the kit extracts from all of them."""
    benchmark = benchmark_of("mathvista")
    question = question_of(benchmark, ROW | CELLS | {"answer": "14"})
    assert [benchmark.score(question, answer_of(text)).value for text in ("14", "15", "14.0", " 14 ")] == [
        1,
        0,
        None,
        1,
    ]


def scores_of(benchmark, rows: list[dict[str, str]], values: list[float | None]) -> list[Score]:
    return [
        replace(
            benchmark.scored(question_of(benchmark, row, str(i)), value, "" if value is not None else "down"),
            question_id=str(i),
        )
        for i, (row, value) in enumerate(zip(rows, values, strict=True))
    ]


def row_named(benchmark, scores, name):
    return next(row for row in benchmark.aggregate(scores) if row.name == name)


def test_wemath_divides_by_the_problems_that_were_scored():
    """Catches the constant 525, with which four problems score 99 %, and a failed step that counts as wrong."""
    rows = [
        ROW | {"ID": str(problem), "key": f"2steps_{step}"} for problem in range(4) for step in ("1", "2", "multi")
    ]  # fmt: skip
    values = [1, 1, 1, 1, 1, 0, 1, 0, 1, 0, 0, 0]
    benchmark = WeMath()
    scores = scores_of(benchmark, rows, values)
    assert row_named(benchmark, scores, "overall").value == (1 + 0.5) / 4
    assert row_named(benchmark, scores, "score, loose").value == (1 + 0.5 + 1) / 4
    assert row_named(benchmark, scores, "rote memorization, strict").value == 1 / 4
    failed = row_named(benchmark, scores_of(benchmark, rows, [None, *values[1:]]), "overall")
    assert (failed.value, failed.n, failed.failed) == (0.5 / 3, 3, 1)


def test_hrbench_averages_the_rotations():
    """Catches the mean over rows: with failed answers the rotations are of unequal size."""
    benchmark = benchmark_of("hrbench4k")
    rows = [ROW | {"cycle_category": str(cycle)} for _ in range(2) for cycle in range(4)]
    scores = scores_of(benchmark, rows, [1, 0, 0, 0, None, 1, 0, 0])
    assert row_named(benchmark, scores, "overall").value == (1 + 0.5) / 4
    assert row_named(benchmark, scores, "overall").failed == 1


def test_dynamath_worst_case():
    """Catches a template whose failed variant counts as right, or as wrong."""
    benchmark = benchmark_of("dynamath")
    rows = [ROW | CELLS | {"qid": str(template)} for template in range(4) for _ in range(2)]
    worst = row_named(benchmark, scores_of(benchmark, rows, [1, 1, 1, 0, 1, None, 0, None]), "worst case")
    assert (worst.value, worst.n, worst.failed) == (1 / 3, 3, 1)


def test_several_samples_of_a_composite_problem_are_averaged():
    """Catches steps of one sample combined with those of another."""
    benchmark = WeMath()
    rows = [ROW | {"ID": "0", "key": f"2steps_{step}"} for step in ("1", "2", "multi")]
    first, second = scores_of(benchmark, rows, [1, 1, 1]), scores_of(benchmark, rows, [0, 0, 0])
    overall = row_named(benchmark, [*first, *(replace(score, sample=1) for score in second)], "overall")
    assert overall.value == 0.5
