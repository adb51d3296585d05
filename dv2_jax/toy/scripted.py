"""The scripted teacher: solves every default task with real tool calls and takes its answers from their output.

`demonstrate` is a coroutine that yields assistant turns and receives tool output. It knows the kind of the question,
as an annotator would, but takes every number, name and digit of its answer from tool output.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Generator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from dv2_jax.data.question import Question
from dv2_jax.toy.styles import TrajectoryStyle
from dv2_jax.toy.tasks import drawing, reasoning


@dataclass(frozen=True)
class Feedback:
    """Tool output as the teacher uses it: printed text, encoded images, titles and snippets of search results."""

    stdout: str = ""
    images: tuple[bytes, ...] = ()
    items: tuple[tuple[str, str], ...] = ()


Demonstration = Generator[str, Feedback, None]


class DemonstrationFailed(Exception):
    """Raised when tool output lacks the data that the answer needs."""


def demonstrate(question: Question, style: TrajectoryStyle, rng: np.random.Generator) -> Demonstration:
    """Yields the text of each turn up to the answer; receives a `Feedback` after each turn except the last.

    Raises:
        DemonstrationFailed: tool output lacks the data that the answer needs.
    """
    solver = {
        "perception": _perception,
        "reasoning": _reasoning,
        "search": _search,
        "integration": _integration,
        "plain": _plain,
    }[question.skill]
    first = True
    turns = solver(question, style, rng)
    feedback = None
    while True:
        try:
            turn = turns.send(feedback)
        except StopIteration:
            return
        feedback = yield turn if first else turn.removeprefix("<think>")  # later turns start with a pre-filled tag
        first = False


def _say(rng: np.random.Generator, *thoughts: str) -> str:
    return f"<think>{rng.choice(thoughts)}</think>\n"


def _code(thought: str, code: str) -> str:
    return f"{thought}<code>\n```python\n{code}\n```\n</code>"


def _call(thought: str, name: str, **arguments: str) -> str:
    body = {"name": name} | ({"arguments": arguments} if arguments else {})
    return f"{thought}<tool_call>\n{json.dumps(body)}\n</tool_call>"


def _answer(rng: np.random.Generator, value: str) -> str:
    return f"{_say(rng, 'I have it.', 'That is the answer.', 'Done.')}<answer>{value}</answer>"


def _compute(
    rng: np.random.Generator, style: TrajectoryStyle, thought: str, code: str
) -> Generator[str, Feedback, Feedback]:
    """Runs code; the error-then-retry style first omits an import or a letter and corrects it after the error."""
    if style.error_then_retry:
        broken = code.split("\n", 1)[1] if code.startswith("import") else code.replace("print(", "prnt(", 1)
        broken = broken.replace("display(", "dsplay(", 1) if broken == code else broken
        yield _code(thought, broken)
        thought = _say(rng, "That failed. I fix it.", "An error. Once more.")
    return (yield _code(thought, code))


def _zoom(rng, style: TrajectoryStyle, x: int, y: int) -> Generator[str, Feedback, int]:
    """Crops around a point and reads the digit at the center of the returned image."""
    thought = _say(rng, "It is too small. I zoom in.", "I need a closer look.", "I crop that place.")
    code = f"x, y, r = {x}, {y}, {style.crop_half_side}\ndisplay(image_1.crop((x - r, y - r, x + r, y + r)))"
    feedback = yield from _compute(rng, style, thought, code)
    return _read_center_digit(feedback)


def _read_center_digit(feedback: Feedback) -> int:
    if not feedback.images:
        raise DemonstrationFailed("the crop did not come back")
    image = Image.open(io.BytesIO(feedback.images[0])).convert("RGB")
    left, top = (image.width - drawing.DIGIT) // 2, (image.height - drawing.DIGIT) // 2
    return drawing.read_digit(image.crop((left, top, left + drawing.DIGIT, top + drawing.DIGIT)))


def _perception(question: Question, style: TrajectoryStyle, rng: np.random.Generator) -> Demonstration:
    meta = question.meta
    if meta["kind"] == "point":
        digit = yield from _zoom(rng, style, meta["x"], meta["y"])
    else:
        thought = _say(rng, "I look for its colour.", "I find the tag by colour and zoom in.", "I crop the tag.")
        margin = style.crop_half_side - drawing.TAG // 2
        code = (
            "import numpy as np\n"
            f"d = np.asarray(image_1).astype(int) - {drawing.COLORS[meta['colour']]}\n"
            f"y, x = np.nonzero(abs(d).sum(2) < 60)\nr = {margin}\n"
            "display(image_1.crop((x.min() - r, y.min() - r, x.max() + r + 1, y.max() + r + 1)))"
        )
        feedback = yield from _compute(rng, style, thought, code)
        digit = _read_center_digit(feedback)
    yield _answer(rng, str(digit))


def _last_number(text: str) -> str:
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text)
    if not numbers:
        raise DemonstrationFailed(f"no number in {text!r}")
    return numbers[-1]


def _reasoning(question: Question, style: TrajectoryStyle, rng: np.random.Generator) -> Demonstration:
    kind = reasoning.KIND_BY_NAME[question.meta["kind"]]
    incomplete = style.incomplete_code and bool(kind.incomplete_code)
    thought = _say(rng, "I compute it.", "Code will tell.", "I let Python do it.")
    code = (kind.incomplete_code if incomplete else kind.code).format(**question.meta)
    feedback = yield from _compute(rng, style, thought, code)
    if incomplete:
        value = _complete_computation(kind.name, feedback.stdout, question.meta)
    else:
        value = _last_number(feedback.stdout)
    yield _answer(rng, value)


def _complete_computation(name: str, stdout: str, meta: dict) -> str:
    """Computes the answer from the output of incomplete code."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", stdout)
    if not numbers:
        raise DemonstrationFailed(f"no number in {stdout!r}")
    return {
        "multiply_add": lambda: str(int(numbers[0]) + meta["c"]),
        "remainder": lambda: numbers[-1],
        "primes": lambda: str(int(numbers[-2]) - int(numbers[-1])),
        "quotient": lambda: str(round(float(numbers[0]), 2)),
        "picture_mean": lambda: str(round(float(numbers[0]))),
        "picture_size": lambda: str(sum(map(int, numbers))),
    }[name]()


def _look_up(rng, style: TrajectoryStyle, entity: str, attribute: str) -> Generator[str, Feedback, str]:
    """Searches for a fact and extracts its value from the results."""
    thought = _say(rng, "I search for it.", "I look that up.", "The search will know.")
    if style.error_then_retry:
        yield f'{thought}<tool_call>\n{{"name": "search", "query": "{entity}"}}\n</tool_call>'
        thought = _say(rng, "The call was wrong. I fix it.", "Again, with arguments.")
    query = entity if style.broad_query else f"{attribute} of {entity}"
    feedback = yield _call(thought, "search", query=query)
    sentence = re.compile(rf"The {re.escape(attribute)} of {re.escape(entity)} is (.+)\.$")
    overview = re.compile(rf"{re.escape(entity)}: .*?\b{re.escape(attribute)} ([^;]+?)(?:;|\.$)")
    for pattern in (sentence, overview):
        for _, snippet in feedback.items:
            if match := pattern.match(snippet):
                return match.group(1)
    raise DemonstrationFailed(f"no result for {query!r} states the {attribute} of {entity}")


def _search(question: Question, style: TrajectoryStyle, rng: np.random.Generator) -> Demonstration:
    value = yield from _look_up(rng, style, question.meta["entity"], question.meta["attribute"])
    yield _answer(rng, value)


def _identify_entity(rng) -> Generator[str, Feedback, str]:
    feedback = yield _call(_say(rng, "I search by the picture.", "Where is this from?"), "image_search")
    for title, _ in feedback.items:
        if match := re.match(r"(?:Postcard from|Display of) (.+)$", title):
            return match.group(1)
    raise DemonstrationFailed("the image was not found")


def _integration(question: Question, style: TrajectoryStyle, rng: np.random.Generator) -> Demonstration:
    meta = question.meta
    no_errors = replace(style, error_then_retry=False)  # at most one error per trajectory, in the computation
    if meta["kind"] == "recognise":
        entity = yield from _identify_entity(rng)
        value = yield from _look_up(rng, no_errors, entity, meta["attribute"])
        expression = f"{value} * {meta['factor']}"
    else:
        digit = yield from _zoom(rng, no_errors, meta["x"], meta["y"])
        value = yield from _look_up(rng, no_errors, meta["entity"], meta["attribute"])
        expression = f"{value} + {digit}"
    thought = _say(rng, "Now I compute.", "I compute it.")
    feedback = yield from _compute(rng, style, thought, f"print({expression})")
    yield _answer(rng, _last_number(feedback.stdout))


def _plain(question: Question, style: TrajectoryStyle, rng: np.random.Generator) -> Demonstration:
    if style.needless_search:
        yield _call(_say(rng, "I search for the picture first.", "Maybe others know it."), "image_search")
    image = drawing.load(question.images[0])
    if question.meta["kind"] == "digit":
        inner = int(image.width * 0.8)
        edge = (image.width - inner) // 2
        value = str(drawing.read_digit(image.crop((edge, edge, edge + inner, edge + inner))))
    else:
        seen = np.asarray(image).astype(int)[2:5, 2:5].mean((0, 1))
        value = min(drawing.COLORS, key=lambda name: np.abs(seen - drawing.COLORS[name]).sum())
    thought = _say(rng, "I can see it.", "That is plain to see.")
    yield f"{thought}<answer>{value}</answer>"
