"""Tests of the registries: terms and verdict sources from outside the package, weights, and the released totals."""

import itertools
import sys
import types

import pytest

from dv2_jax.config import ConfigError, RewardConfig
from dv2_jax.data.question import Question
from dv2_jax.rewards import compute_rewards, reward, reward_registry, score_response, verdict_source
from dv2_jax.rewards.rules import final_answer, is_well_formed, term_weights
from dv2_jax.rewards.verdicts import is_correct

ANSWER = "<think>a</think>\n<answer>Paris</answer><|im_end|>"
SEARCH = "<think>a</think><tool_call>q</tool_call><|im_end|><think>b</think>" + ANSWER[17:]
CODE = SEARCH.replace("tool_call", "code")
BROKEN = ANSWER.replace("</think>", "", 1)


@pytest.fixture
def registries(monkeypatch):
    """Undoes what a test registers."""
    for registry in (reward_registry.REWARDS, reward_registry.VERDICT_SOURCES):
        monkeypatch.setattr(registry, "entries", dict(registry.entries))


def released_total(text, correct, source, config):
    """The released formula, written out."""
    accuracy = float(correct and bool(final_answer(text) or source != "reason"))
    penalty = config.search_penalty if source == "search" and "<tool_call>" in text else 0.0
    bonus = config.tool_bonus * accuracy * float("<tool_call>" in text or "<code>" in text)
    if source == "vstar-test":
        return accuracy
    form = float(is_well_formed(text, source, config))
    return config.accuracy_weight * accuracy * (1 - penalty) + config.format_weight * form + bonus


def test_the_weighted_sum_equals_the_released_formula_bit_for_bit():
    """Catches: another order of the additions, or the search penalty on the wrong factor."""
    configs = [RewardConfig(), RewardConfig(accuracy_weight=0.7, format_weight=0.3, search_penalty=0.3, tool_bonus=0.1)]
    texts = (ANSWER, SEARCH, CODE, BROKEN, "<think></think>")
    sources = ("perception", "reason", "search", "vstar-test")
    for text, correct, source, config in itertools.product(texts, (True, False), sources, configs):
        parts = score_response(text, correct, source, config)
        assert parts.total.hex() == released_total(text, correct, source, config).hex(), (text, correct, source)
        assert list(parts.to_dict()) == ["accuracy", "format", "penalty", "total", "bonus"]


def test_a_term_from_outside_needs_a_registration_and_a_name_in_the_config(registries):
    @reward("brevity")
    def brevity(response, config):
        return 1.0 / len(response.answer)

    config = RewardConfig(terms=("accuracy", "format", "brevity=0.5"))
    parts = score_response(ANSWER, True, "perception", config)
    assert parts.total == pytest.approx(0.8 + 0.2 + 0.5 / 5)
    assert parts.to_dict()["brevity"] == pytest.approx(0.1) and parts.accuracy == 1.0
    assert score_response(ANSWER, True, "vstar-test", config).total == 1.0  # validation reports accuracy


def test_a_term_from_outside_needs_no_registration_if_its_import_path_is_given(monkeypatch):
    module = types.ModuleType("my_rewards")
    module.turns = lambda response, config: -len(response.trajectory.turns)
    module.says_paris = lambda answer, config: True if answer.prediction == "Paris" else None
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    config = RewardConfig(terms=("accuracy=2", "my_rewards:turns=0.25"), verdicts=("my_rewards:says_paris",))
    trajectory = types.SimpleNamespace(turns=(1, 2, 3), tools=())
    assert score_response(ANSWER, True, "reason", config, trajectory).total == pytest.approx(2 - 0.75)
    question = Question("q", "plain", "perception", "Which city?", (), "Rome")
    assert is_correct(question, ANSWER, config)
    assert not is_correct(question, ANSWER.replace("Paris", "Rome"), config)  # nobody decides


def test_verdict_sources_are_asked_in_order_until_one_decides(registries):
    asked = []

    @verdict_source("teacher")
    def teacher(answer, config):
        asked.append(answer.prediction)
        return answer.prediction == "Lutetia"

    config = RewardConfig(verdicts=("rules", "teacher"))
    question = Question("q", "plain", "perception", "Which city?", (), "Paris")
    assert is_correct(question, ANSWER, config) and asked == []
    assert is_correct(question, ANSWER.replace("Paris", "Lutetia"), config) and asked == ["Lutetia"]
    assert not is_correct(question, ANSWER.replace("Paris", "Rome"), config)
    assert not is_correct(question, ANSWER.replace("Paris", "Lutetia"), RewardConfig(verdicts=("rules",)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RewardConfig(terms=("acuracy",)), "reward.terms: 'acuracy' is none of accuracy, format, tool_bonus"),
        (RewardConfig(terms=("accuracy=much",)), "the weight in 'accuracy=much' is no number"),
        (RewardConfig(terms=("accuracy", "accuracy=2")), "'accuracy' is given twice"),
        (RewardConfig(terms=("no_such_package:f",)), "cannot import 'no_such_package:f'"),
        (RewardConfig(terms=("math:pi",)), "'math:pi' is a float, not a function"),
        (RewardConfig(verdicts=("oracle",)), "reward.verdicts: 'oracle' is none of rules, judge"),
        (RewardConfig(verdicts=("math:no_such",)), "cannot import 'math:no_such'"),
    ],
)
def test_an_unknown_name_is_refused_with_its_key(config, message):
    """Catches: a misspelled reward that silently adds nothing."""
    with pytest.raises(ConfigError, match=message):
        compute_rewards([], None, config)


def test_weights_come_from_the_entry_or_the_released_field():
    config = RewardConfig(accuracy_weight=0.9, terms=("accuracy", "format=0.3", "tool_bonus"), tool_bonus=0.1)
    assert term_weights(config) == {"accuracy": 0.9, "format": 0.3, "tool_bonus": 0.1}


def test_a_name_is_registered_once(registries):
    """Catches: two packages whose rewards replace each other, depending on the order of imports."""
    with pytest.raises(ValueError, match="'accuracy' is registered already, by dv2_jax.rewards.rules.accuracy"):
        reward("accuracy")(lambda response, config: 1.0)


def test_a_term_that_is_not_finite_is_an_error(registries):
    reward("broken")(lambda response, config: float("nan"))
    with pytest.raises(ValueError, match="'broken' returned nan"):
        score_response(ANSWER, True, "reason", RewardConfig(terms=("broken",)))
