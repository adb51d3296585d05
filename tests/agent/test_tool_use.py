"""Tests the classification of code cells, on cells as policies write them, against the class a reader would choose."""

import pytest

from dv2_jax.agent.tool_use import shares, tool_kinds
from dv2_jax.agent.tools.cell_kinds import classify_cell
from dv2_jax.agent.tools.tool_registry import default_tools, use_titles
from dv2_jax.agent.trajectory import TurnRecord
from tools_service.common.status import Status


@pytest.mark.parametrize(
    ("code", "num_images", "kind"),
    [
        ("image_1.crop((900, 300, 1200, 520))", 1, "crop"),
        ("import matplotlib.pyplot as plt\nplt.imshow(image_1.crop((0, 0, 9, 9)))\nplt.axis('off')\nplt.show()", 1, "crop"),
        ("import numpy as np\na = np.array(image_1)\ndisplay(a[10:50, 20:80])", 1, "crop"),
        ("patch = image_1.crop((0, 0, 9, 9)).resize((90, 90))\npatch", 1, "crop"),
        ("import numpy as np\nprint(np.array(image_1)[10:50, 20:80].mean())", 0, "numerical"),
        ("print(17 * 23 + 4)", 0, "numerical"),
        ("from math import comb\ncomb(9, 4)", 0, "numerical"),
        ("print(sum(x for x in range(9) if x % 2))", 0, "numerical"),
        ("from PIL import ImageDraw\nd = ImageDraw.Draw(image_1)\nd.rectangle((1, 1, 9, 9), outline='red')\nimage_1", 1, "mark"),
        ("plt.imshow(image_1)\nplt.axhline(30)\nplt.show()", 1, "mark"),
        ("c = image_1.crop((0, 0, 99, 99))\nImageDraw.Draw(c).line((0, 0, 9, 9))\nc", 1, "mark"),
        ("image_1.rotate(90)", 1, "other"),
        ("plt.imshow(image_1)\nplt.show()", 1, "other"),
        ("# I would look at the picture here\npass", 0, "other"),
        ("print('the answer is 4')", 0, "other"),
        ("for x in\nprint(x)", 0, "other"),
        ("image_1.crop((0, 0, 9, 9))", 0, "other"),  # a crop that returned no image
        ("a\x00b", 0, "other"),
    ],
)  # fmt: skip
def test_a_cell_is_classed_by_what_it_does_and_what_came_back(code, num_images, kind):
    assert classify_cell(code, num_images) == kind


def _code(code: str, *, images=(), status=Status.OK) -> TurnRecord:
    return TurnRecord(f"<think>x</think>\n<code>\n```python\n{code}\n```\n</code>", "code", "", images, status)


def test_shares_count_calls_that_ran_and_sum_to_one():
    search = TurnRecord('<tool_call>\n{"name": "search"}\n</tool_call>', "search", "", (), Status.OK)
    turns = [
        _code("image_1.crop((0, 0, 9, 9))", images=(b"png",)),
        _code("print(2 ** 10)"),
        _code("print(2 ** 11)"),
        search,
        _code("print(2 ** 12)", status=None),  # the last permitted turn: not executed
        TurnRecord("<answer>4</answer>", "answer"),
    ]
    found = shares(tool_kinds(turns))
    assert found == {"crop": 0.25, "numerical": 0.5, "mark": 0.0, "other": 0.0, "image_search": 0.0, "search": 0.25}
    assert list(found) == list(use_titles(default_tools()))


def test_without_calls_all_shares_are_zero():
    assert set(shares(tool_kinds([TurnRecord("<answer>4</answer>", "answer")])).values()) == {0.0}
