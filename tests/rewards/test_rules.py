"""Tests of the released reward arithmetic against a table computed by hand."""

import pytest

from dv2_jax.config import RewardConfig
from dv2_jax.rewards.rules import final_answer, is_well_formed, score_response

CONFIG = RewardConfig()
ANSWER = "<think>a</think>\n<answer>7</answer><|im_end|>"
CODE = (
    "<think>a</think>\n<code>\n```python\nx\n```\n</code><|im_end|>\n<|im_start|>user\nCode execution result: 1<|im_end|>\n"
    "<|im_start|>assistant\n<think>b</think><answer>7</answer><|im_end|>"
)
SEARCH = CODE.replace("<code>", "<tool_call>").replace("</code>", "</tool_call>")


@pytest.mark.parametrize(
    ("text", "right", "source", "total"),
    [
        (ANSWER, True, "perception", 1.0),
        (ANSWER, False, "perception", 0.2),
        (CODE, True, "perception", 1.0),
        (CODE, True, "reason", 1.0),
        (SEARCH, True, "search", 0.92),
        (SEARCH, False, "search", 0.2),
        (SEARCH + SEARCH, True, "search", 0.92),  # the penalty is not per call
        (SEARCH, True, "perception", 1.0),  # nor does it exist elsewhere
        (ANSWER, True, "search", 1.0),
        (SEARCH.replace("</tool_call>", ""), True, "search", 0.72),
        (SEARCH.replace("</tool_call>", ""), True, "perception", 1.0),  # only the search split counts these tags
        (CODE.replace("</code>", ""), True, "reason", 0.8),
        (ANSWER, True, "vstar-test", 1.0),
        (ANSWER.replace("</think>", ""), True, "vstar-test", 1.0),
        (ANSWER, False, "vstar-test", 0.0),
        ("<think>a</think>I do not know", False, "perception", 0.0),
        ("<think>a</think>I do not know", True, "perception", 0.8),  # a judge may accept "None", as released
        ("<think>a</think>I do not know", True, "reason", 0.0),  # but is not asked here
    ],
)
def test_totals_are_the_released_ones(text, right, source, total):
    assert score_response(text, right, source, CONFIG).total == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (ANSWER, True),
        (ANSWER.removeprefix("<think>"), True),  # granted where missing
        (" " + ANSWER, False),  # the released test is on the very first characters
        ("<think>a<answer>7</answer>", False),
        ("<think>a</think></think><answer>7</answer>", False),
        ("<think>a</think><answer>7", False),
        ("<think>a</think><answer> </answer>", False),
        ("<think>a</think><answer></answer><answer>7</answer>", False),  # the first one counts
        ("<think>a</think><answer>7</answer><answer>8</answer>", True),
        ("<think><answer>9</answer></think><answer>7</answer>", True),  # tags inside the thought do not count
        ("<think><answer></think><answer>7</answer>", True),
        ("<think>a <answer>7</answer></think>", False),  # an answer before the end of the thought is none
        ("<think>a</think><answer>7</answer><code>", False),
    ],
)
def test_format_is_balance_and_one_place_for_the_answer(text, good):
    assert is_well_formed(text, "reason", CONFIG) == good


def test_the_length_limit_holds_for_perception_and_search_alone():
    for length, source, total in (
        (299, "perception", 1.0), (300, "perception", 0.0), (300, "search", 0.0), (300, "reason", 1.0),
    ):  # fmt: skip
        text = f"<think>a</think><answer>{'x' * length}</answer>"
        assert score_response(text, True, source, CONFIG).total == pytest.approx(total), (length, source)


def test_the_answer_is_the_first_after_the_last_thought():
    assert (
        final_answer("<think>a</think><answer>1</answer><think>b</think> <answer> 2\n</answer><answer>3</answer>")
        == "2"
    )
    assert final_answer("<answer>1</answer><think>b</think>") is None


def test_weights_and_bonus_come_from_the_config():
    config = RewardConfig(accuracy_weight=2.0, format_weight=1.0, search_penalty=0.5, tool_bonus=0.2)
    assert score_response(SEARCH, True, "search", config).total == pytest.approx(2.0 * 0.5 + 1.0 + 0.2)
    assert score_response(CODE, True, "reason", config).bonus == pytest.approx(0.2)
    assert (
        score_response(CODE, False, "reason", config).bonus
        == 0.0
        == score_response(ANSWER, True, "reason", config).bonus
    )
