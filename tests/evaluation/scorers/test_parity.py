"""Holds our scorers equal to stored verdicts of ms-vlmeval 0.0.20; `.ci/scorer_parity.sh` runs the package itself."""

from __future__ import annotations

import json

import pytest

from tests.evaluation.scorers.parity_cases import RULES, make_cases
from tests.evaluation.scorers.parity_with_kit import LISTED, STORED, compare, is_equal

ROWS = [json.loads(line) for line in STORED.read_text().splitlines()]


def rows_of(rule: str) -> list[tuple[dict, object]]:
    return [(row["case"], row["kit"]) for row in ROWS if row["case"]["rule"] == rule]


@pytest.mark.parametrize("rule", ["prompt", *RULES])
def test_verdicts_are_those_of_the_kit(rule):
    """Catches any change of a prompt or a rule that changes verdicts; differences are those that `LISTED` explains."""
    cases, kit = zip(*rows_of(rule), strict=True)
    counts, unlisted = compare(list(cases), list(kit))
    assert not unlisted, "\n".join(unlisted[:5])
    assert counts[rule].total() >= (20 if rule == "prompt" else 30)


@pytest.mark.parametrize("rule", list(RULES))
def test_the_stored_cases_contain_right_and_wrong_answers(rule):
    """Catches cases that all have one verdict, with which a rule that never compares anything would agree."""
    verdicts = [kit[0] if isinstance(kit, list) else kit for _, kit in rows_of(rule)]
    right = sum(verdict in (True, 1.0, "is_correct") for verdict in verdicts)
    assert 2 <= right <= len(verdicts) - 2


def test_a_wrong_verdict_is_reported():
    """Catches a comparison that lists every difference as intended."""
    case, kit = next((case, kit) for case, kit in rows_of("chartqa") if kit is True)
    counts, unlisted = compare([case], [False])
    assert len(unlisted) == 1 and counts["chartqa"]["equal"] == 0 and is_equal(case, kit, True)


def test_cases_are_reproducible_and_listed_differences_name_rules():
    assert make_cases(5) == make_cases(5)
    assert make_cases(5) != make_cases(5, seed=1)
    assert {entry.rule for entry in LISTED} <= RULES.keys()
