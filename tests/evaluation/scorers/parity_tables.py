"""Rows from which prompts are built, and tables of right and wrong answers that are aggregated, for `parity_cases`."""

from __future__ import annotations

import random

OPTIONS = {"A": "red", "B": "blue", "C": "green", "D": "none of the above"}
LISTED = "['(A) red', '(B) blue', '(C) green', '(D) black', '(E) none of these']"
ROW = {"question": "Which color?\nLook closely.", "answer": "A", "category": "Perception/OCR"}
MATH = {"choices": "[]", "subject": "algebra", "knowledge_level": "high school", "qid": "1", "skill": "inductive"}
PROMPTS: dict[str, list[dict[str, str]]] = {
    "vstar": [ROW | OPTIONS, ROW | OPTIONS | {"hint": "It is on the left."}, ROW | {"A": "Yes", "B": "No"}],
    "hrbench4k": [ROW | OPTIONS],
    "seedbench2_plus": [ROW | OPTIONS],
    "mme_realworld": [ROW | {"multi-choice options": LISTED}],
    "mme_realworld_lite": [ROW | {"multi-choice options": LISTED}],
    "treebench": [ROW | OPTIONS, ROW | OPTIONS | {"hint": "Two cars."}],
    "ocrbench": [ROW],
    "chartqa": [ROW],
    "charxiv_descriptive": [ROW | {"qid": "3"}],
    "charxiv_reasoning": [ROW | {"inst_category": "3"}],
    "mathvista": [ROW],
    "mathverse": [ROW],
    "mathvision": [ROW],
    "wemath": [ROW | OPTIONS | {"E": "No correct answer"}, ROW | OPTIONS | {"hint": "x"}],
    "dynamath": [ROW | MATH | {"answer_type": kind} for kind in ("float", "multiple choice", "text")],
    "logicvista": [ROW | MATH],
    "simplevqa_kit": [ROW],
}


def prompt_cases() -> list[dict]:
    """Returns one case per row of `PROMPTS`; its verdict is the prompt."""
    return [{"rule": "prompt", "benchmark": name, "columns": row} for name, rows in PROMPTS.items() for row in rows]


def _wemath(draw: random.Random, problems: int) -> list[dict[str, str]]:
    rows = []
    for problem in range(problems):
        steps = draw.choice("23") if problem > 1 else "23"[problem]
        names = [f"{steps}steps_{step}" for step in (*range(1, int(steps) + 1), "multi")]
        rows += [
            {**ROW, **OPTIONS, "ID": str(problem), "key": name, "knowledge concept": "Translation"} for name in names
        ]
    return rows


def table_cases() -> list[dict]:
    """Returns tables of rows with right and wrong answers; the verdict of a case is a table of values by name."""
    draw = random.Random(7)
    versions = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
    rows: dict[str, list[dict[str, str]]] = {
        "hrbench8k": [
            ROW | OPTIONS | {"category": category, "cycle_category": str(cycle)}
            for category, count in (("single", 30), ("cross", 20))
            for _ in range(count)
            for cycle in range(4)
        ],
        "wemath": _wemath(draw, 525),
        "dynamath": [
            ROW | {"answer_type": "float", "qid": str(10 * template), "varid": str(variant + 1)}
            | {"subject": draw.choice(["algebra", "geometry"]) if not variant else "algebra", "knowledge_level": "x"}
            for template in range(20)
            for variant in range(10)
        ],
        "mathverse": [
            ROW | {"problem_version": version, "question_for_eval": str(problem)}
            for problem in range(40)
            for version in versions
        ],
        "logicvista": [ROW | {"skill": draw.choice(["inductive", "deductive", "numerical", "spatial", "mechanical"])} for _ in range(60)],
        "charxiv_descriptive": [ROW | {"qid": str(draw.randint(1, 19)), "grading_query": ""} for _ in range(120)],
        "charxiv_reasoning": [ROW | {"inst_category": str(draw.randint(1, 4)), "grading_query": ""} for _ in range(40)],
        "mme_realworld": [
            ROW | {"category": draw.choice(["Perception/Remote Sensing", "Reasoning/Monitoring"]), "l2-category": "x"}
            for _ in range(80)
        ],
        "ocrbench": [
            ROW | {"category": draw.choice(["Digit String Recognition", "Handwriting Recognition", "Doc-oriented VQA"])}
            for _ in range(50)
        ],
        "vstar": [ROW | OPTIONS | {"category": draw.choice(["direct_attributes", "relative_position"])} for _ in range(40)],
    }  # fmt: skip
    likely = {"dynamath": 0.9, "wemath": 0.7}
    return [
        {
            "rule": "table",
            "benchmark": name,
            "rows": table,
            "hits": [draw.random() < likely.get(name, 0.5) for _ in table],
        }
        for name, table in rows.items()
    ]
