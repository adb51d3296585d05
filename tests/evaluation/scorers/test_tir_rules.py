"""The rules of TIR-Bench on answers with known scores."""

import pytest

from dv2_jax.evaluation.scorers.tir_rules import answer_kind, read_answer, score_answer

PROMPT = "Which one is it?\nA. a red car\nB. blue\nC. red"

KINDS = [
    ("maze", "A", "letter"), ("color", "ABD", "letters"), ("math", "12", "integer"), ("instrument", "0.35", "decimal"),
    ("ocr", "mobi", "text"), ("word_search", "3, 7", "pair"), ("word_search", "4", "integer"),
    ("spot_difference", "[1, 4, 5]", "set"), ("spot_difference", "6", "integer"), ("jigsaw", "1,2,3,4", "grid"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "answer", "kind"), KINDS)
def test_answer_kind_follows_task_and_form(task, answer, kind):
    assert answer_kind(task, answer) == kind


def test_answer_kind_rejects_what_no_rule_scores():
    with pytest.raises(ValueError, match="'a red car' of a question of the task 'maze' has no form"):
        answer_kind("maze", "a red car")


READ = [
    ("letter", "B", "B"), ("letter", "(B)", "B"), ("letter", "**B.**", "B"), ("letter", "Answer: B", "B"),
    ("letter", "B. blue", "B"), ("letter", "blue", "B"), ("letter", "The answer is C", "C"), ("letter", "C. blue", None),
    ("letter", "It is probably B or C", None), ("letter", "green", None), ("letters", "A, B and D", "ABD"),
    ("letters", "not sure", None), ("integer", "12", "12"), ("integer", "12.", "12"), ("integer", "1,200", "1200"),
    ("integer", "about 12", None), ("decimal", "0.35", "0.35"), ("pair", "3, 7", "3, 7"), ("pair", "row 3, column 7", None),
    ("set", "[1, 4]", "1, 4"), ("set", "There are 3: 1, 4, 5", None), ("grid", "1,2,3,4", "1,2,3,4"), ("grid", "1,2,3", None),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "prediction", "expected"), READ)
def test_read_answer_takes_bare_answers_and_nothing_else(kind, prediction, expected):
    """Catches a rule that finds an answer in a sentence, where only a model can tell which number or letter is meant."""
    assert read_answer(kind, prediction, PROMPT, 2) == expected


SCORES = [
    ("letter", "B", "B", 1.0), ("letter", "blue", "B", 1.0), ("letter", "A", "B", 0.0), ("letter", "green", "A", 0.0),
    ("letters", "DBA", "ABD", 1.0), ("letters", "AB", "ABD", 0.0), ("integer", "12 degrees", "12", 1.0),
    ("integer", r"\frac{24}{2}", "12", 1.0), ("integer", "13", "12", 0.0), ("decimal", "0.350", "0.35", 1.0),
    ("text", "it says mobi here", "mobi", 1.0), ("text", "Mobi", "mobi", 0.0), ("pair", "(3,7)", "3, 7", 1.0),
    ("pair", "7, 3", "3, 7", 0.0), ("pair", "none", "3, 7", 0.0), ("set", "1, 4, 6", "[1, 4, 5]", 0.5),
    ("set", "", "[1]", 0.0), ("grid", "1, 2, 4, 3", "1,2,3,4", 0.5), ("grid", "1 2 3", "1,2,3,4", 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "extracted", "answer", "score"), SCORES)
def test_score_answer_gives_the_official_credit(kind, extracted, answer, score):
    assert score_answer(kind, extracted, answer, PROMPT, 2) == score
