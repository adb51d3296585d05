"""Tests the prompts: their length, their content, and the positions of images."""

import pytest

from dv2_jax.agent import prompts
from dv2_jax.agent.tools.code import CodeTool
from dv2_jax.agent.tools.tool_registry import run_tools
from dv2_jax.config import AgentConfig
from dv2_jax.data.question import Question
from tests.agent.tool_results import png


def test_the_brief_prompts_stay_under_sixty_words():
    system, user = prompts.build_messages(Question("q", "s", "reason", "", (), "a"), "brief")
    assert len(system["content"].split()) + len(user["content"].split()) <= 60


def test_the_full_prompt_keeps_the_released_order_of_content():
    order = ["Keep working", "step by step", "MUST use Python", "MUST search", "Image search", "MUST plan", "one kind",
             "`image_i`", "## Tools", "## python", "```python", "time limit", "plt.show()` (", "kernel", "terminate",
             "disk", "## search", "`image_search`:", "`search`:", '{"name": "image_search"}', '{"name": "search"']  # fmt: skip
    positions = [prompts.SYSTEM["full"].index(phrase) for phrase in order]
    assert positions == sorted(positions)


def test_without_search_no_word_of_searching_remains():
    system, user = prompts.build_messages(Question("q", "s", "reason", "2+2?", (), "a"), "full_no_search")
    for text in (system["content"], user["content"]):
        assert "search" not in text.lower() and "tool_call" not in text


def test_a_question_with_its_own_messages_keeps_them_byte_for_byte():
    own = ({"role": "system", "content": " S\n"}, {"role": "user", "content": "<image>\tU "})
    question = Question("q", "s", "search", "other", (png(),), "a", messages=own)
    assert prompts.build_messages(question, "full") is own


@pytest.mark.parametrize("name", ["brief", "full", "full_no_search"])
def test_images_come_first_unless_the_question_places_them(name):
    pair = (png(seed=1), png(seed=2))
    user = prompts.build_messages(Question("q", "s", "reason", "Compare.", pair, "a"), name)[1]["content"]
    assert user.startswith("<image>\n<image>\nCompare.") and user.count("<image>") == 2
    placed = prompts.build_messages(Question("q", "s", "reason", "Is <image> like <image>?", pair, "a"), name)[1][
        "content"
    ]
    assert placed.startswith("Is <image> like <image>?")


def test_a_file_can_replace_the_system_prompt_and_a_wrong_name_is_an_error(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Mine.\n", encoding="utf-8")
    assert prompts.system_prompt(str(path)) == "Mine.\n"
    with pytest.raises(ValueError, match="breif.*brief, full"):
        prompts.system_prompt("breif")


def test_per_tool_describes_exactly_the_tools_of_the_run():
    """Catches: a baseline with one search that hears of tools that it does not have."""
    question = Question("q", "s", "reason", "2+2?", (png(),), "a")
    signs = {"code": "```python", "search": '"name": "search"', "image_search": '"name": "image_search"'}
    for names in [("code",), ("search",), ("image_search",), ("search", "image_search"), tuple(signs)]:
        tools = run_tools(AgentConfig(tools=names))
        system, user = prompts.build_messages(question, "per_tool", tools)
        assert [name for name, sign in signs.items() if sign in system["content"]] == list(names)
        assert user["content"].startswith("<image>\n2+2?\n")
    (user,) = prompts.build_messages(question, "per_tool", ())
    assert "tool" not in user["content"] and "<answer>" in user["content"]


def test_per_tool_keeps_the_text_of_a_tool_without_a_manual():
    class Own(CodeTool):
        name = tag = "own_tool"
        manual = ""
        prompt = "Call me."

    system, _ = prompts.build_messages(Question("q", "s", "reason", "2+2?", (), "a"), "per_tool", (Own(),))
    assert system["content"].endswith("# Tools\n\nCall me.")
