"""Tests of costs against hand-made sums."""

import json

import pytest

from dv2_jax.config import ConfigError
from dv2_jax.evaluation.costs import PriceTable, cost_per_correct
from dv2_jax.evaluation.records import AnswerInfo, JudgeReply

PRICES = {
    "gpt-x": {"input": 2.5, "cached_input": 0.25, "output": 10, "currency": "USD", "date": "2026-11-01"},
    "small": {"input": 0.1, "output": 0.4, "currency": "USD", "date": "2026-11-01"},
}


def table(tmp_path, content) -> PriceTable:
    path = tmp_path / "prices.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return PriceTable.load(path)


def answer(model, prompt, generated) -> AnswerInfo:
    return AnswerInfo("b", "q", 0, 1, "", model, (), prompt_tokens=prompt, completion_tokens=generated)


def test_costs_of_answers_and_replies(tmp_path):
    prices = table(tmp_path, PRICES)
    assert prices.answer_cost(answer("gpt-x", 1_000_000, 100_000)) == pytest.approx(2.5 + 1.0)
    assert prices.judge_cost(JudgeReply("small", "brief", "", "", 2000, 10)) == pytest.approx(0.0002 + 0.000004)
    assert prices.price("gpt-x").cost(1_000_000, 0, cached_tokens=400_000) == pytest.approx(0.6 * 2.5 + 0.4 * 0.25)
    assert prices.price("small").cost(1_000_000, 0, cached_tokens=400_000) == pytest.approx(0.1)
    assert prices.currency == "USD"
    assert cost_per_correct(3.0, 4) == 0.75 and cost_per_correct(3.0, 0) is None


def test_a_model_without_a_price_is_named(tmp_path):
    with pytest.raises(ConfigError, match="prices.json: there is no price of 'gpt-y', but of gpt-x, small"):
        table(tmp_path, PRICES).answer_cost(answer("gpt-y", 1, 1))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "prices.json"),
        ([], "an object of prices by model"),
        ({}, "an object of prices by model"),
        ({"m": {"input": 1}}, "'m': input, output, currency, date .* expected, not input"),
        ({"m": PRICES["small"] | {"outputs": 1}}, "expected, not input, output, currency, date, outputs"),
        ({"m": PRICES["small"] | {"input": "2"}}, "'m': input = '2'"),
        ({"m": PRICES["small"] | {"output": -1}}, "'m': output = -1"),
        (
            {"m": PRICES["small"], "n": PRICES["small"] | {"currency": "EUR"}},
            "one currency is needed, there are EUR, USD",
        ),
    ],
)
def test_a_wrong_table_is_one_sentence(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message) as caught:
        table(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="eval.prices = .*none.json: No such file"):
        PriceTable.load(tmp_path / "none.json")
