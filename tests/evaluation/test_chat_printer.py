"""Tests the printing of trajectories on a terminal."""

import io

import pytest
from PIL import Image
from rich.console import Console

from dv2_jax.agent.trajectory import Finish
from dv2_jax.evaluation.chat_printer import ChatPrinter


@pytest.fixture
def printed(tmp_path):
    """Returns `printed(trajectory)`, the text that is printed on the terminal."""

    def print_trajectory(trajectory) -> str:
        out = io.StringIO()
        printer = ChatPrinter(Console(file=out, width=100), tmp_path / "images")
        for turn in trajectory.turns:
            printer.turn(turn)
        printer.end(trajectory)
        return out.getvalue()

    return print_trajectory


def test_thought_code_image_and_answer_appear_in_order(printed, trajectories, tmp_path):
    text = printed(trajectories[0])
    places = [text.index(part) for part in ("It is small.", "image_1.crop((100, 40, 140, 80))", "40 × 40", "A seven.")]
    assert places == sorted(places) and text.rstrip().endswith("7")
    assert "<think>" not in text and "```" not in text
    with (
        Image.open(tmp_path / "images" / "0001.png") as saved,
        Image.open(io.BytesIO(trajectories[0].turns[0].images[0])) as sent,
    ):
        assert saved.convert("RGB").tobytes() == sent.convert("RGB").tobytes()


def test_a_second_chat_keeps_the_images_of_the_first(printed, trajectories, tmp_path):
    printed(trajectories[0])
    assert "0002.png" in printed(trajectories[1]).replace("\n", "")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["0001.png", "0002.png"]


def test_errors_outputs_and_search_results_are_shown(printed, trajectories):
    assert "NameError: name 'imge_1' is not defined" in printed(trajectories[1])
    assert "\n    42\n" in printed(trajectories[2])
    found = printed(trajectories[3])
    assert "search capital of Chad" in found and "Capital of Chad." in found and "tool_response" not in found


def test_what_a_policy_or_page_writes_cannot_style_the_terminal_through_markup(printed, make, parts, trajectories):
    """Catches console markup such as [bold] taken from a query or an output."""
    query = '{"name": "search", "arguments": {"query": "[red]x[/red] [/]"}}'
    item = parts.Item("[link=file:///]t[/link]", "https://e.org", "[/nonsense]")
    steps = [(f"<think>[bold]</think>\n<tool_call>\n{query}\n</tool_call>", parts.Result(items=(item,)))]
    text = printed(make(trajectories[3].question, [*steps, ("[/]</think>\n<answer>[blink]</answer>", None)], 9))
    for literal in ("[red]x[/red] [/]", "[link=file:///]t[/link]", "[/nonsense]", "[blink]", "[bold]"):
        assert literal in text


def test_control_characters_are_shown_and_do_not_act(printed, make, parts, trajectories):
    """Catches a cell that clears the screen or sets the window's title."""
    steps = [
        (parts.SUM, parts.Result(stdout="\x1b]0;owned\x07 a\x9b2J")),
        ("\x1b[2Jx</think>\n<answer>\x1b[2J</answer>", None),
    ]
    text = printed(make(trajectories[2].question, steps, 9))
    assert not any(char in text for char in "\x1b\x07\x9b") and "␛]0;owned␇" in text


def test_an_ending_without_an_answer_says_why(printed, make, trajectories, parts):
    trajectory = make(trajectories[2].question, [(parts.SUM, parts.Result(stdout="42"))], 3)
    trajectory.finish = Finish.MAX_TURNS
    assert "No answer: no turns are left." in printed(trajectory)
