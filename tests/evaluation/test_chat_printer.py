import io

import pytest
from PIL import Image
from rich.console import Console

from dv2_jax.agent.trajectory import Finish
from dv2_jax.evaluation.chat_printer import Narrator


@pytest.fixture
def told(tmp_path):
    """``told(trajectory)`` is what a person reads."""

    def tell(trajectory) -> str:
        out = io.StringIO()
        narrator = Narrator(Console(file=out, width=100), tmp_path / "pictures")
        for turn in trajectory.turns:
            narrator.turn(turn)
        narrator.end(trajectory)
        return out.getvalue()

    return tell


def test_thought_code_picture_and_answer_appear_in_order(told, trajectories, tmp_path):
    text = told(trajectories[0])
    places = [text.index(part) for part in ("It is small.", "image_1.crop((100, 40, 140, 80))", "40 × 40", "A seven.")]
    assert places == sorted(places) and text.rstrip().endswith("7")
    assert "<think>" not in text and "```" not in text
    with (
        Image.open(tmp_path / "pictures" / "0001.png") as saved,
        Image.open(io.BytesIO(trajectories[0].turns[0].images[0])) as sent,
    ):
        assert saved.convert("RGB").tobytes() == sent.convert("RGB").tobytes()


def test_a_second_chat_keeps_the_pictures_of_the_first(told, trajectories, tmp_path):
    told(trajectories[0])
    assert "0002.png" in told(trajectories[1]).replace("\n", "")
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["0001.png", "0002.png"]


def test_errors_outputs_and_search_results_are_shown(told, trajectories):
    assert "NameError: name 'imge_1' is not defined" in told(trajectories[1])
    assert "\n    42\n" in told(trajectories[2])
    found = told(trajectories[3])
    assert "search capital of Chad" in found and "Capital of Chad." in found and "tool_response" not in found


def test_what_a_policy_or_page_writes_cannot_style_the_terminal_through_markup(told, make, parts, trajectories):
    """Catches console markup such as [bold] taken from a query or an output."""
    query = '{"name": "search", "arguments": {"query": "[red]x[/red] [/]"}}'
    item = parts.Item("[link=file:///]t[/link]", "https://e.org", "[/nonsense]")
    steps = [(f"<think>[bold]</think>\n<tool_call>\n{query}\n</tool_call>", parts.Result(items=(item,)))]
    text = told(make(trajectories[3].question, [*steps, ("[/]</think>\n<answer>[blink]</answer>", None)], 9))
    for literal in ("[red]x[/red] [/]", "[link=file:///]t[/link]", "[/nonsense]", "[blink]", "[bold]"):
        assert literal in text


def test_control_characters_are_shown_and_do_not_act(told, make, parts, trajectories):
    """Catches a cell that clears the screen or sets the window's title."""
    steps = [
        (parts.SUM, parts.Result(stdout="\x1b]0;owned\x07 a\x9b2J")),
        ("\x1b[2Jx</think>\n<answer>\x1b[2J</answer>", None),
    ]
    text = told(make(trajectories[2].question, steps, 9))
    assert not any(char in text for char in "\x1b\x07\x9b") and "␛]0;owned␇" in text


def test_an_ending_without_an_answer_says_why(told, make, trajectories, parts):
    trajectory = make(trajectories[2].question, [(parts.SUM, parts.Result(stdout="42"))], 3)
    trajectory.finish = Finish.MAX_TURNS
    assert "No answer: no turns are left." in told(trajectory)
