# ruff: noqa: E402 (mocks must be installed before the kit is imported)
"""Scores cases with ms-vlmeval: `python kit_verdicts.py cases.json verdicts.json`, in an environment of its own.

A verdict is true, false, `random` (the kit would choose an option at random), or `error: ...`.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import kit_import

kit_import.install()

import numpy as np
import pandas as pd
from vlmeval.dataset import charxiv, dynamath, image_mcq, image_vqa, simplevqa
from vlmeval.dataset.utils import (
    hrbench,
    logicvista,
    mathv,
    mathverse,
    mathvista,
    multiple_choice,
    treebench,
    vqa_eval,
    wemath,
)

mathv.is_equal = mathv.is_equal.__wrapped__  # without a process per comparison


class RandomChoice(Exception):
    """The kit would choose at random."""


def _refuse(options):
    raise RandomChoice


multiple_choice.rd = SimpleNamespace(choice=_refuse)


class Judge:
    """Gives the replies of a case in turn, and the last one from then on."""

    def __init__(self, case):
        self.replies = list(case.get("replies", [case.get("reply", "")]))

    def generate(self, prompt, **sampling):
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


def line_of(case):
    columns = {name: value for name, value in case["columns"].items() if value != ""}
    return pd.Series({**columns, "index": 0, "prediction": case["prediction"]})


def seedbench2_plus(case):
    line = line_of(case)
    line["GT"] = line["answer"]
    return multiple_choice.eval_vanilla(Judge(case), line, dataset_name="SEEDBench2_Plus")["hit"] == 1


def _by_letter(cases, dataset, module_of_rating):
    """Runs `evaluate` on a table of all cases, without files."""
    frame = pd.DataFrame(
        [{**case["columns"], "index": i, "prediction": case["prediction"]} for i, case in enumerate(cases)]
    )
    kept = {}

    def load(path):
        return kept["data"] if "data" in kept else frame

    def dump(data, path):
        if isinstance(data, pd.DataFrame):
            kept["data"] = data

    image_mcq.load, image_mcq.dump, module_of_rating.load = load, dump, load
    multiple_choice.get_dimension_rating = lambda path: {}
    dataset.evaluate("/nonexistent/cases.xlsx")
    return kept["data"]


def mme_realworld(cases):
    return [bool(score) for score in _by_letter(cases, image_mcq.MMERealWorld, multiple_choice)["score"]]


def tree_bench(cases):
    # The kit calls `self.evaluate_box_iou` on the class, which makes it a function of two arguments.
    data = _by_letter(cases, image_mcq.TreeBench, treebench)
    return [[bool(score), round(float(iou), 9)] for score, iou in zip(data["score"], data["iou"])]


def ocrbench(case):
    kept = {}
    image_vqa.load, image_vqa.dump = lambda path: pd.DataFrame([line_of(case)]), lambda data, path: kept.update(data)
    image_vqa.OCRBench.evaluate("/nonexistent/cases.xlsx")
    return kept["Final Score"] == 1


def chartqa(case):
    return bool(np.max(vqa_eval.process_line(line_of(case), method="relaxed_accuracy")["match"]))


def math_vista(case):
    line = line_of(case)
    line["res"] = mathvista.MathVista_auxeval(Judge(case), line)["res"]
    return bool(mathvista.post_check(line, prefetch=False))


def math_vision(case):
    line = line_of(case)
    line["res"] = mathv.MATH_V_auxeval(Judge(case), line)["res"]
    return bool(mathv.post_check(line, prefetch=False))


def math_verse(case):
    line, judge = line_of(case), Judge(case)
    line["extract"] = mathverse.MathVerse_auxeval_extract(judge, line)["extract"]
    return bool(mathverse.MathVerse_auxeval_score(judge, line)["score"])


def dyna_math(case):
    return bool(dynamath.DynaMath_auxeval(Judge(case), line_of(case))["correct"])


def logic_vista(case):
    return bool(logicvista.LogicVista_auxeval(Judge(case), line_of(case))["hit"])


def char_xiv(case):
    return float(charxiv.auxeval(Judge(case), line_of(case))["score"])


def simple_vqa(case):
    completion = SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=case["reply"]))])
    create = SimpleNamespace(completions=SimpleNamespace(create=lambda **request: completion))
    simplevqa.OpenAI = lambda **settings: SimpleNamespace(chat=create)
    simplevqa.file.load = lambda path: pd.DataFrame([line_of(case)])
    table = simplevqa.SimpleVQA.get_scores(None, str(Path(sys.argv[2])))
    metrics = dict(zip(table[0], table[1]))
    return next((name for name in ("is_correct", "is_incorrect", "is_not_attempted") if metrics[name]), "none")


KINDS = {
    "vstar": (image_mcq.ImageMCQDataset, "VStarBench"), "hrbench4k": (image_mcq.HRBenchDataset, "HRBench4K"),
    "seedbench2_plus": (image_mcq.ImageMCQDataset, "SEEDBench2_Plus"),
    "mme_realworld": (image_mcq.MMERealWorld, "MME-RealWorld"),
    "mme_realworld_lite": (image_mcq.MMERealWorld, "MME-RealWorld-Lite"),
    "treebench": (image_mcq.TreeBench, "TreeBench"), "ocrbench": (image_vqa.OCRBench, "OCRBench"),
    "chartqa": (image_vqa.ImageVQADataset, "ChartQA_TEST"), "charxiv_descriptive": (charxiv.CharXiv, "CharXiv_descriptive_val"),
    "charxiv_reasoning": (charxiv.CharXiv, "CharXiv_reasoning_val"), "mathvista": (image_vqa.MathVista, "MathVista_MINI"),
    "mathverse": (image_vqa.MathVerse, "MathVerse_MINI"), "mathvision": (image_vqa.MathVision, "MathVision"),
    "wemath": (image_mcq.WeMath, "WeMath"), "dynamath": (dynamath.Dynamath, "DynaMath"),
    "logicvista": (image_vqa.LogicVista, "LogicVista"), "simplevqa_kit": (simplevqa.SimpleVQA, "SimpleVQA"),
}  # fmt: skip


def prompt(case):
    kind, name = KINDS[case["benchmark"]]
    dataset = kind.__new__(kind)
    dataset.meta_only, dataset.dataset_name = True, name
    line = pd.Series({**case["columns"], "image": "x.png", "image_path": "x.png"})
    if "multi-choice options" in line:  # as its `load_data` does
        line["multi-choice options"] = "The choices are listed below:\n" + "\n".join(eval(line["multi-choice options"]))
    *images, text = dataset.build_prompt(line)
    return text["value"]


def table(case):
    frame = pd.DataFrame(case["rows"])
    frame["index"] = range(len(frame))
    hits = [int(hit) for hit in case["hits"]]
    return {name: round(float(value), 9) for name, value in TABLES[case["benchmark"]](frame, hits).items()}


def _hrbench_table(frame, hits):
    found = hrbench.report_acc_hrbench(frame.assign(hit=hits))
    values = {
        "overall" if row.type == "all" else row.type: row.accuracy
        for row in found[found.cycle == "Average"].itertuples()
    }
    cycles = found[(found.type == "all") & (found.cycle != "Average")]
    return values | {f"rotation {row.cycle}": row.accuracy for row in cycles.itertuples()}


def _wemath_table(frame, hits):
    wemath.load = lambda path: frame.assign(hit=hits)
    scores = {name: cells[0] for name, cells in wemath.wemath_evaluate_models("").items()}
    steps = {name: cells[0] for name, cells in wemath.wemath_accuracy("").items()}
    share = lambda text: float(text.partition("%")[0]) / 100  # noqa: E731
    names = {"overall": scores["Score (Strict)"], "score, loose": scores["Score (Loose)"]}
    names |= {
        "one step": steps["One-step(S1)"],
        "two steps": steps["Two-step(S2)"],
        "three steps": steps["Three-step(S3)"],
    }
    for kind in ("strict", "loose"):
        for ours, theirs in (
            ("complete mastery", "CompleteMastery"),
            ("insufficient knowledge", "InsufficientKnowledge"),
            ("inadequate generalization", "InadequateGeneralization"),
        ):
            names[f"{ours}, {kind}"] = scores[f"{theirs} ({kind.title()})"]
    return {name: share(text) for name, text in names.items()}


def _dynamath_table(frame, hits):
    data = frame.assign(correct=[bool(hit) for hit in hits], qid=frame.qid.astype(int), varid=frame.varid.astype(int))
    dynamath.build_judge, dynamath.load = lambda **settings: SimpleNamespace(), lambda path: data
    dynamath.dump, dynamath.osp = lambda *parts: None, SimpleNamespace(exists=lambda path: True)
    dynamath.os = SimpleNamespace(path=SimpleNamespace(exists=lambda path: False))
    found = dynamath.Dynamath.evaluate(None, "/nonexistent/cases.xlsx")
    average, worst = (found[found.Setting == name].iloc[0] for name in ("Average", "Worst Case"))
    values = {f"subject {name}": average[f"Subject-{name}"] for name in set(frame.subject)}
    return values | {"overall": average["Overall"], "level x": average["Level-x"], "worst case": worst["Overall"]}


def _mathverse_table(frame, hits):
    metadata = "{'subject': 's', 'subfield': 'f'}"
    mathverse.load = lambda path: frame.assign(score=[bool(hit) for hit in hits], metadata=metadata)
    return {row.split: row.Overall / 100 for row in mathverse.MathVerse_acc("").itertuples()}


def _logicvista_table(frame, hits):
    logicvista.load = lambda path: frame.assign(hit=hits)
    found = logicvista.evaluate_logicvista("")
    return {name.replace("Overall", "overall"): value / 100 for name, value in zip(found["Task&Skill"], found["acc"])}


def _charxiv_table(name):
    def values(frame, hits):
        column = "qid" if "descriptive" in name else "inst_category"
        charxiv.file.load = lambda path: frame.assign(score=hits, **{column: frame[column].astype(int)})
        found = charxiv.CharXiv.get_scores(SimpleNamespace(dataset_name=name), "").iloc[0]
        return {key.replace("Overall", "overall"): value for key, value in found.items()}

    return values


def _mme_table(frame, hits):
    multiple_choice.load = lambda path: frame.assign(score=hits)
    found = RATING("")
    values = {
        "overall": found["Overall"],
        "Perception": found["Perception"]["Avg"],
        "Reasoning": found["Reasoning"]["Avg"],
    }
    return values | {
        f"{task}/{name}": found[task][name]["Avg"] for task, name in (c.split("/") for c in set(frame.category))
    }


def _ocrbench_table(frame, hits):
    kept = {}
    data = frame.assign(answer="['x']", prediction=["x" if hit else "" for hit in hits])
    image_vqa.load, image_vqa.dump = lambda path: data, lambda values, path: kept.update(values)
    image_vqa.OCRBench.evaluate("/nonexistent/cases.xlsx")
    counts = {"overall": len(frame), "Text Recognition": sum("Recognition" in name for name in frame.category)}
    return {name: kept["Final Score" if name == "overall" else name] / n for name, n in counts.items()}


def _mcq_table(frame, hits):
    found = multiple_choice.report_acc(frame.assign(hit=hits)).iloc[0]
    return {name.replace("Overall", "overall"): value for name, value in found.items() if name != "split"}


TABLES = {
    "hrbench8k": _hrbench_table, "wemath": _wemath_table, "dynamath": _dynamath_table, "mathverse": _mathverse_table,
    "logicvista": _logicvista_table, "charxiv_descriptive": _charxiv_table("descriptive"),
    "charxiv_reasoning": _charxiv_table("reasoning"), "mme_realworld": _mme_table, "ocrbench": _ocrbench_table,
    "vstar": _mcq_table,
}  # fmt: skip
RATING = multiple_choice.get_dimension_rating
SINGLE = {
    "prompt": prompt, "table": table,
    "seedbench2_plus": seedbench2_plus, "ocrbench": ocrbench, "chartqa": chartqa, "mathvista": math_vista,
    "mathvision": math_vision, "mathverse": math_verse, "dynamath": dyna_math, "logicvista": logic_vista,
    "charxiv_descriptive": char_xiv, "simplevqa_kit": simple_vqa,
}  # fmt: skip
TOGETHER = {"mme_realworld": mme_realworld, "treebench": tree_bench}


def verdict(case):
    try:
        return SINGLE[case["rule"]](case)
    except RandomChoice:
        return "random"
    except Exception as error:
        return f"error: {type(error).__name__}"


def main():
    cases = json.loads(Path(sys.argv[1]).read_text())
    found = [None] * len(cases)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for rule in dict.fromkeys(case["rule"] for case in cases):
            own = [i for i, case in enumerate(cases) if case["rule"] == rule]
            if rule in TOGETHER:
                verdicts = TOGETHER[rule]([cases[i] for i in own])
            else:
                verdicts = [verdict(cases[i]) for i in own]
            for i, value in zip(own, verdicts):
                found[i] = value
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
