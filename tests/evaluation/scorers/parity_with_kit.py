"""Compares our official scorers with ms-vlmeval: `python -m tests.evaluation.scorers.parity_with_kit KIT_PYTHON`.

KIT_PYTHON is the Python of an environment that has ms-vlmeval (`.ci/scorer_parity.sh` makes one). Every difference must be
one of `LISTED`, which says why; any other is an error. `--count=N` sets the number of predictions per rule, `--store`
writes a part of the verdicts to `reference_verdicts.jsonl`, for the tests without the kit.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dv2_jax.evaluation.benchmarks.kit_benchmark import LETTERS
from dv2_jax.evaluation.scorers.choice_inference import infer_choice, read_option
from dv2_jax.evaluation.scorers.graded_json import EXTRACTED_KEYS
from dv2_jax.evaluation.scorers.literal_lists import lettered, read_list
from tests.evaluation.scorers.our_verdicts import verdict
from tests.evaluation.scorers.parity_cases import make_cases

HERE = Path(__file__).parent
STORED = HERE / "reference_verdicts.jsonl"
STORED_PER_RULE = 40
WEMATH_DIGITS = 5e-5  # the kit prints percent with two decimals


@dataclass(frozen=True)
class Difference:
    """A difference that is intended: verdicts of the kit and of ours, for cases of a rule that `applies` accepts."""

    rule: str
    kit: Any
    ours: Any
    reason: str
    applies: Callable[[dict], bool] = lambda case: True

    def matches(self, case: dict, kit: Any, ours: Any) -> bool:
        return (case["rule"], kit, ours) == (self.rule, self.kit, self.ours) and self.applies(case)


def _has_fence_or_new_key(case: dict) -> bool:
    return "```" in case["reply"] or EXTRACTED_KEYS[1] in case["reply"]


def _has_name(case: dict) -> bool:
    return any(letter.isalpha() for letter in case["prediction"] + case["reply"])


def _is_nothing_but_an_option(case: dict) -> bool:
    columns = case["columns"]
    choices = {letter: columns[letter] for letter in LETTERS if columns.get(letter)}
    choices = choices or lettered(read_list(columns.get("choices", "")) or [])
    prediction = case["prediction"]
    return infer_choice(prediction, choices) is None and read_option(prediction, choices) is not None


_OPTIONS = tuple(
    Difference(
        rule,
        kit,
        ours,
        "an empty reply, or one that is nothing but an option, needs no judge; the kit's judge gave another reply",
        _is_nothing_but_an_option,
    )
    for rule in ("seedbench2_plus", "mathvista", "mathvision")
    for kit, ours in ((True, False), (False, True), ("random", False), ("random", True))
)
LISTED = (
    *_OPTIONS,
    Difference(
        "seedbench2_plus",
        "random",
        "undecided",
        "the kit chooses an option at random where neither reply nor judge names one",
    ),
    Difference("mathvision", True, False, "the kit evaluates the reply with eval(): names of its own variables", _has_name),
    Difference("logicvista", False, "undecided", "the judge's reply is no letters: the kit counts 0 after five tries"),
    Difference("charxiv_descriptive", 0.0, "undecided", "the judge's reply has no grade: the kit counts 0 after ten tries"),
    Difference(
        "charxiv_descriptive",
        0.0,
        1.0,
        "a grade in a code block, or with the key of later versions, is read; the kit counts 0",
        _has_fence_or_new_key,
    ),
    Difference("simplevqa_kit", "none", "undecided", "the judge's reply has no verdict: the kit counts none of the three"),
    Difference("dynamath", "error: ValueError", False, "the kit stops at a digit such as \u00b2 that is no number"),
    Difference("dynamath", "error: AttributeError", False, "the kit stops at a short answer that is no text"),
    Difference("dynamath", "error: AttributeError", True, "the kit stops at a short answer that is no text"),
)  # fmt: skip


def kit_verdicts(python: str, cases: list[dict]) -> list[Any]:
    """Returns the kit's verdicts on cases, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("cases.json", "verdicts.json")]
        paths[0].write_text(json.dumps(cases))
        command = [python, "-W", "ignore", str(HERE / "kit_verdicts.py"), *map(str, paths)]
        environment = {"HOME": folder, "LMUData": folder, "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        return json.loads(paths[1].read_text())


def is_equal(case: dict, kit: Any, ours: Any) -> bool:
    """Returns whether two verdicts agree; tables, whether each value of the kit does."""
    if case["rule"] != "table":
        return kit == ours
    tolerance = WEMATH_DIGITS if case["benchmark"] == "wemath" else 1e-8
    return all(name in ours and math.isclose(ours[name], value, abs_tol=tolerance) for name, value in kit.items())


def compare(cases: list[dict], kit: list[Any]) -> tuple[dict[str, collections.Counter], list[str]]:
    """Returns rule → counts of equal verdicts and of each listed difference, and the differences that are not listed."""
    counts: dict[str, collections.Counter] = {}
    unlisted = []
    for case, theirs in zip(cases, kit, strict=True):
        found = counts.setdefault(case["rule"], collections.Counter())
        ours = verdict(case)
        if is_equal(case, theirs, ours):
            found["equal"] += 1
            continue
        listed = next((entry for entry in LISTED if entry.matches(case, theirs, ours)), None)
        if listed is None:
            unlisted.append(f"{json.dumps(case, ensure_ascii=False)[:700]}\n    kit {theirs!r}, ours {ours!r}")
        else:
            found[listed.reason] += 1
    return counts, unlisted


def store(cases: list[dict], kit: list[Any]) -> None:
    """Writes the first cases of every rule with the kit's verdicts."""
    written: collections.Counter[str] = collections.Counter()
    lines = []
    for case, theirs in zip(cases, kit, strict=True):
        written[case["rule"]] += 1
        if written[case["rule"]] <= STORED_PER_RULE and case["rule"] != "table":
            lines.append(json.dumps({"case": case, "kit": theirs}, ensure_ascii=True))
    STORED.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args()
    cases = make_cases(options.count)
    kit = kit_verdicts(options.python, cases)
    if options.store:
        store(cases, kit)
    counts, unlisted = compare(cases, kit)
    for rule, found in counts.items():
        print(f"{rule}: {found.total()} compared, {found['equal']} equal")
        for reason, number in found.items():
            if reason != "equal":
                print(f"    {number} differ: {reason}")
    total = sum(found.total() for found in counts.values())
    print(f"{total} verdicts, {len(unlisted)} unlisted differences")
    if unlisted:
        sys.exit("\n".join(unlisted[:20]))


if __name__ == "__main__":
    main()
