"""Synthetic predictions on which our scorers are compared with VLMEvalKit's: plain JSON, the same for both sides.

A case is a dictionary: `rule`, a row (`columns`), a `prediction`, and the `reply` that the judge gives if it is asked.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable

from tests.evaluation.scorers.parity_tables import prompt_cases, table_cases

WORDS = "red blue green a black car the left side right of tree 12 sign Australia bus stop none wooden big small Dog".split()
OPTION_SETS = (
    ("red", "blue", "green", "black"),
    ("The car is red.", "The car is blue.", "The car is green.", "There is no car."),
    ("left", "right", "left side of the tree", "above"),
    ("12", "120", "1.2", "0.12"),
    ("3/11", "8/11", "6/11", "3/5"),
    ("\\frac{1}{2}", "\\frac{1}{3}", "2", "0.5"),
    ("Yes", "No"),
    ("A", "B", "C", "D"),
    ("a dog", "a cat", "Dog and cat", "neither", "both", "Zebra"),
)
NUMBERS = (
    "0 1 -1 7 7.0 7.35 14 14. 12% 0.12 12.6% 13 12.5 1,000 1000 1_000 1e3 -0.5 .5 100 95 105 105.1 0.0 00 +3 nan inf 3/4"
    " 0.75 2**3 2^3 (1+2)*3 ((2)) 1/0 10**400 0x10 3. 2014 2,014 $5 5cm 3\u03c0 \u03c0 ½ ² 7,5".split()
)
LATEX = (
    r"\frac{1}{2}", r"\frac12", r"\frac{2}{4}", r"\sqrt{8}", r"2\sqrt{2}", r"50\%", r"3\times 4", r"10^{3}", r"\pi", r"|-3|",
    r"\boxed{5}", r"\(5\)", r"$5$", r"5^\circ", r"\frac{3}{4}\pi", "x=5", "(1,2)", "1:2", r"\left(3\right)", r"-\frac{7}{2}",
    r"2\frac{1}{2}", "5!", r"\text{cm}", "24", "24 cm", r"\frac{", r"1.50", r"1{,}000", "x^2+1", "1+x^2",
)  # fmt: skip
SENTENCES = (
    "The answer is {}.", "{}", "({})", "{}.", "**{}**", "<answer>{}</answer>", "Answer: {}", "The correct answer is ({})",
    "I think it is {}, because the sign says so", "{}: that is what the image shows in the upper left corner of it", "Option {}",
    "[{}]", "{} or maybe not", "So the best option is {}", "\\boxed{{{}}}", "The best answer is {}", "Best answer: {}", "'{}'",
    "A careful look shows {}", "it must be {} I guess. Yes", " {} ", "<think>It is B or C</think> {}", "\n{}\n",
)  # fmt: skip
ODD = (
    "", " ", "Z", "nan", "None", "the answer is blue", "Sorry, I can't help with images of people yet.", "A and B", "ABCD",
    "I cannot tell", "Cannot determine the answer from this image, maybe A", "Failed to obtain answer via API.", "a", "e",
    "(b", "The answer is", "Neither A nor B, but C", "This is not an option at all; the picture shows something else entirely",
    "A man is standing next to a red car and B is his dog", "\u7b54\u6848\u662f A", "\\boxed{(A)}", "{}", "[]", "A" * 500,
)  # fmt: skip


def _reply(draw: random.Random, cores: list[str]) -> str:
    if draw.random() < 0.15:
        return draw.choice(ODD)
    if draw.random() < 0.1:
        return " ".join(draw.choices([*WORDS, *cores], k=draw.randint(1, 14)))
    return draw.choice(SENTENCES).format(draw.choice(cores))


def _options(draw: random.Random) -> dict[str, str]:
    return {"ABCDEF"[number]: text for number, text in enumerate(draw.choice(OPTION_SETS))}


def _is_number(text: str) -> bool:
    try:
        return float(text) is not None
    except ValueError:
        return False


def choice(draw: random.Random) -> dict:
    options = _options(draw)
    answer = draw.choice(list(options))
    cores = [*options, *options.values(), "Z", "E", answer, answer, answer, options[answer], options[answer]]
    columns = {"question": "Which one?", "answer": answer, "category": "x", **options}
    return {"columns": columns, "prediction": _reply(draw, cores), "reply": draw.choice([*options, "Z", "none", "(A)"])}


def letter(draw: random.Random) -> dict:
    category = draw.choice(["Perception/OCR", "Reasoning/Comparison", "Perception/Attributes"])
    columns = {"question": "Which one?", "answer": draw.choice("ABCDE"), "category": category, "l2-category": "x"}
    columns["target_instances"] = json.dumps([[0, 0, 10, 10], [20, 20, 40, 30]][: draw.randint(0, 2)])
    cores = [*"ABCDEabcdeF", "red", "the car", *[columns["answer"]] * 8]
    boxes = [
        "",
        "",
        "<box>[0,0,10,5]</box>",
        "<think>seen <box>[0,0,12,10]</box></think>",
        "<box>[5,5,1,1]</box><box>[1, 2,3,4]</box>",
    ]
    return {"columns": columns, "prediction": draw.choice(boxes) + _reply(draw, cores)}


def chartqa(draw: random.Random) -> dict:
    cores = [*NUMBERS, "Yes", "No", "red", "Dec 2014", "yes"]
    answer = draw.choice(cores)
    if draw.random() < 0.2:
        answer = repr([draw.choice(cores), draw.choice(cores)])
    near = draw.choice([*cores, *[answer, answer.upper(), f" {answer} "] * 8])
    return {"columns": {"question": "How many?", "answer": answer, "split": "test_human"}, "prediction": near}


def ocrbench(draw: random.Random) -> dict:
    category = draw.choice(
        ["Regular Text Recognition", "Handwritten Mathematical Expression Recognition", "Doc-oriented VQA"]
    )
    gold = draw.choice([["STOP"], ["x ^ 2 + 1", "x^2+1"], ["a\nb"], ["$ 5 . 00"], ["Centre", "center"], [""], ["12"]])
    texts = [
        *gold,
        *(text.lower() for text in gold),
        *(text.replace(" ", "") for text in gold),
        "stop",
        "X^2+1",
        "a b",
        "99",
    ]
    return {
        "columns": {"question": "Read it.", "answer": repr(gold), "category": category},
        "prediction": _reply(draw, texts),
    }


def mathvista(draw: random.Random) -> dict:
    kind = draw.choice(["multi_choice", "integer", "float", "list"])
    options = list(draw.choice(OPTION_SETS))
    columns = {
        "question": "Hint: give it.\nQuestion: Which?",
        "answer": "",
        "question_type": "free_form",
        "answer_type": kind,
    }
    columns |= {"choices": "nan", "answer_option": "", "task": "t", "skills": "['a', 'b']", "precision": "1.0"}
    if kind == "multi_choice":
        at = draw.randrange(len(options))
        columns |= {"question_type": kind, "answer_type": "text", "choices": repr(options), "answer": options[at]}
        columns["answer_option"] = "ABCDEF"[at]
        cores = [*"ABCD", *options, "Z", *["ABCDEF"[at], options[at]] * 2]
    else:
        columns["answer"] = {
            "integer": draw.choice(["0", "7", "14", "-1"]),
            "float": draw.choice(["7.35", "0.12", "7.0", "12.6"]),
        }.get(kind, "[2007, 2008]")
        cores = [*NUMBERS, *[columns["answer"]] * 20, "[2007, 2008]"]
    prediction = _reply(draw, cores)
    is_bare = columns["question_type"] != "multi_choice" and _is_number(prediction)
    return {
        "columns": columns,
        "prediction": prediction,
        "reply": prediction.strip() if is_bare else draw.choice(cores),
    }


def mathvision(draw: random.Random) -> dict:
    if draw.random() < 0.4:
        options = list(draw.choice(OPTION_SETS))
        at = draw.randrange(len(options))
        columns = {"choices": repr(options), "answer": "ABCDEF"[at]}
        cores = [*"ABCD", *options, *["ABCDEF"[at], options[at]] * 2]
    else:
        columns = {"choices": "[]", "answer": draw.choice([*LATEX, *NUMBERS])}
        cores = [*LATEX, *NUMBERS, *[columns["answer"]] * 12]
    columns |= {"question": "Find it.", "category": "algebra"}
    prediction = _reply(draw, cores) if draw.random() < 0.5 else draw.choice(cores)
    is_bare = columns["choices"] == "[]" and re.fullmatch(r"[-+\d.,/^*() ]+", prediction.strip())
    return {
        "columns": columns,
        "prediction": prediction,
        "reply": prediction.strip() if is_bare else draw.choice(cores),
    }


def mathverse(draw: random.Random) -> dict:
    answer = draw.choice(["C", "22.3", "f(x) = x^2", "(-2,1]"])
    columns = {
        "question": "Find it.",
        "question_for_eval": "Find it.",
        "answer": answer,
        "problem_version": "Text Lite",
    }
    extracted = draw.choice([answer, f" {answer}", "B", "null"])
    return {
        "columns": columns,
        "prediction": f"It is {answer}",
        "replies": [extracted, draw.choice(["0", "1", " 1", "1\n"])],
    }


def dynamath(draw: random.Random) -> dict:
    kind = draw.choice(["float", "multiple choice", "text"])
    answer = draw.choice(
        {
            "float": ["3.5", "7.0", "-1", "6.283"],
            "multiple choice": list("ABCD"),
            "text": ["Even function", "no", "x=1"],
        }[kind]
    )
    cores = {
        "float": [*NUMBERS, answer, f"{answer} cm", "2\u03c0"],
        "multiple choice": [*"ABCDEf", "A. 5", "B or C", answer],
    }.get(kind, ["even", "Even", "function", "no", "", "yes", answer])
    short: object = draw.choice(cores)
    if kind != "text" and draw.random() < 0.1:
        short = draw.choice([5, 3.5, ["A"], {"a": 1}])
    shapes: list[Callable[[], str]] = [
        lambda: json.dumps({"solution": "x", "short answer": short}),
        lambda: "```json\n" + json.dumps({"solution": "line\nbreak", "short answer": short}, indent=1) + "\n```",
        lambda: json.dumps({"solution": 'say "x"', "short answer": short}),
        lambda: f"Sure! {json.dumps({'short answer': short})} Done.",
        lambda: json.dumps({"answer": short}),
        lambda: str(short),
        lambda: _reply(draw, [str(core) for core in cores]),
    ]
    columns = {
        "question": "Find it.",
        "answer": answer,
        "answer_type": kind,
        "qid": "1",
        "subject": "s",
        "knowledge_level": "l",
    }
    return {
        "columns": columns,
        "prediction": draw.choice(shapes)(),
        "reply": draw.choice([str(core) for core in cores] or ["x"]),
    }


def logicvista(draw: random.Random) -> dict:
    answer = draw.choice(["A", "B", "A, C", "B, D", "A, B, C"])
    cores = ["A", "B", "AC", "CA", "A, C", "C, A", "Z", "ABC", "a", "I", "AA"]
    columns = {"question": "Which?", "answer": answer, "skill": "inductive"}
    prediction = draw.choice([*cores, *(sentence.format("A, C") for sentence in SENTENCES)])
    is_bare = re.fullmatch(
        r"\(?[A-Z]\)?\.?|[A-Z](, [A-Z])+", prediction.strip()
    )  # what a judge extracts from it is certain
    reply = (
        "".join(re.findall("[A-Z]", prediction))
        if is_bare
        else draw.choice(["A", "AC", "CA", "BD", "Z", "a", "", "A, C"])
    )
    return {"columns": columns, "prediction": prediction, "reply": reply}


def charxiv(draw: random.Random) -> dict:
    key = draw.choice(["extract_answer", "extract_answer", "extract_answer", "extracted_answer", "answer"])
    grade = {key: draw.choice(["x", "12", "Not Applicable", "a, b", None]), "score": draw.choice([0, 1, 1, 1.0])}
    text = json.dumps(grade)
    reply = draw.choice(
        [text, text, text, text, f"\n{text}\n", f"```json\n{text}\n```", text[:-1], "[1]", "1", "", f"So: {text}"]
    )
    columns = {"question": "What?", "answer": "y", "qid": "3", "grading_query": "Grade {PREDICTION} against y."}
    return {"columns": columns, "prediction": "x", "reply": reply}


def simplevqa_kit(draw: random.Random) -> dict:
    word = draw.choice(
        [
            "\u6b63\u786e",
            "\u9519\u8bef",
            "\u672a\u5c1d\u8bd5",
            "**\u6b63\u786e**",
            "\u90e8\u5206\u6b63\u786e\u7684",
            "?",
        ]
    )
    value: object = {"conclusion": word} if draw.random() < 0.2 else word
    text = json.dumps({"\u9884\u6d4b\u7b54\u68480": value}, ensure_ascii=False)
    reply = draw.choice([text, f"```json\n{text}\n```", text[:-1], "no idea"])
    return {"columns": {"question": "Who?", "answer": "x"}, "prediction": "x", "reply": reply}


RULES: dict[str, Callable[[random.Random], dict]] = {
    "seedbench2_plus": choice, "mme_realworld": letter, "treebench": letter, "chartqa": chartqa, "ocrbench": ocrbench,
    "mathvista": mathvista, "mathvision": mathvision, "mathverse": mathverse, "dynamath": dynamath, "logicvista": logicvista,
    "charxiv_descriptive": charxiv, "simplevqa_kit": simplevqa_kit,
}  # fmt: skip


def make_cases(count: int, seed: int = 0) -> list[dict]:
    """Returns all prompts and tables, and `count` different cases of each rule, or as many as there are."""
    cases = []
    for rule, make in RULES.items():
        draw, seen = random.Random(f"{rule} {seed}"), {}
        for _ in range(4 * count):
            case = {"rule": rule, **make(draw)}
            seen.setdefault(json.dumps(case, sort_keys=True), case)
            if len(seen) == count:
                break
        cases += seen.values()
    return [*prompt_cases(), *table_cases(), *cases]
