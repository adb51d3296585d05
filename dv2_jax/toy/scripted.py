"""The scripted teacher: solves every default task by real tool calls and by reading what they return.

`play` is a coroutine: it yields assistant turns and is sent what the tool answered. It knows the kind of the
question (as an annotator would) but takes every number, name and digit of its answer from tool output.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dv2_jax.data.question import Question
from dv2_jax.toy.styles import Mood
from dv2_jax.toy.tasks import drawing, reasoning


@dataclass(frozen=True)
class Feedback:
    """What a tool returned: printed text, encoded pictures, titles and snippets of search results."""

    stdout: str = ""
    images: tuple[bytes, ...] = ()
    items: tuple[tuple[str, str], ...] = ()


Play = Generator[str, Feedback, None]


class CannotSolve(Exception):
    """The tools did not return what the answer needs."""


def play(question: Question, mood: Mood, rng: np.random.Generator) -> Play:
    """Yields the text of each turn up to the answer; expects a Feedback after each but the last.

    Raises CannotSolve when a tool's output does not hold what was asked for.
    """
    solver = {
        "perception": _perception,
        "reasoning": _reasoning,
        "search": _search,
        "integration": _integration,
        "plain": _plain,
    }[question.skill]
    first = True
    talk = solver(question, mood, rng)
    feedback = None
    while True:
        try:
            turn = talk.send(feedback)
        except StopIteration:
            return
        feedback = yield turn if first else turn.removeprefix("<think>")  # later turns begin with it pre-filled
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


def _compute(rng: np.random.Generator, mood: Mood, thought: str, code: str) -> Generator[str, Feedback, Feedback]:
    """Run code; a slip leaves an import or a letter out first, and mends it after the error."""
    if mood.slip:
        broken = code.split("\n", 1)[1] if code.startswith("import") else code.replace("print(", "prnt(", 1)
        broken = broken.replace("display(", "dsplay(", 1) if broken == code else broken
        yield _code(thought, broken)
        thought = _say(rng, "That failed. I fix it.", "An error. Once more.")
    return (yield _code(thought, code))


def _zoom(rng, mood: Mood, x: int, y: int) -> Generator[str, Feedback, int]:
    """Crop around a point, read the digit in the returned picture's middle."""
    thought = _say(rng, "It is too small. I zoom in.", "I need a closer look.", "I crop that place.")
    code = f"x, y, r = {x}, {y}, {mood.half}\ndisplay(image_1.crop((x - r, y - r, x + r, y + r)))"
    feedback = yield from _compute(rng, mood, thought, code)
    return _read(feedback, mood)


def _read(feedback: Feedback, mood: Mood) -> int:
    if not feedback.images:
        raise CannotSolve("the crop did not come back")
    image = Image.open(io.BytesIO(feedback.images[0])).convert("RGB")
    left, top = (image.width - drawing.DIGIT) // 2, (image.height - drawing.DIGIT) // 2
    return drawing.read_digit(image.crop((left, top, left + drawing.DIGIT, top + drawing.DIGIT)))


def _perception(question: Question, mood: Mood, rng: np.random.Generator) -> Play:
    meta = question.meta
    if meta["kind"] == "point":
        digit = yield from _zoom(rng, mood, meta["x"], meta["y"])
    else:
        thought = _say(rng, "I look for its colour.", "I find the tag by colour and zoom in.", "I crop the tag.")
        margin = mood.half - drawing.TAG // 2
        code = (
            "import numpy as np\n"
            f"d = np.asarray(image_1).astype(int) - {drawing.COLOURS[meta['colour']]}\n"
            f"y, x = np.nonzero(abs(d).sum(2) < 60)\nr = {margin}\n"
            "display(image_1.crop((x.min() - r, y.min() - r, x.max() + r + 1, y.max() + r + 1)))"
        )
        feedback = yield from _compute(rng, mood, thought, code)
        digit = _read(feedback, mood)
    yield _answer(rng, str(digit))


def _last_number(text: str) -> str:
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text)
    if not numbers:
        raise CannotSolve(f"no number in {text!r}")
    return numbers[-1]


def _reasoning(question: Question, mood: Mood, rng: np.random.Generator) -> Play:
    kind = reasoning.BY_NAME[question.meta["kind"]]
    hasty = mood.hasty and bool(kind.hasty)
    thought = _say(rng, "I compute it.", "Code will tell.", "I let Python do it.")
    code = (kind.hasty if hasty else kind.code).format(**question.meta)
    feedback = yield from _compute(rng, mood, thought, code)
    if hasty:
        value = _finish_in_head(kind.name, feedback.stdout, question.meta)
    else:
        value = _last_number(feedback.stdout)
    yield _answer(rng, value)


def _finish_in_head(name: str, stdout: str, meta: dict) -> str:
    """The step that hasty code leaves open."""
    numbers = re.findall(r"-?\d+(?:\.\d+)?", stdout)
    if not numbers:
        raise CannotSolve(f"no number in {stdout!r}")
    return {
        "multiply_add": lambda: str(int(numbers[0]) + meta["c"]),
        "remainder": lambda: numbers[-1],
        "primes": lambda: str(int(numbers[-2]) - int(numbers[-1])),
        "quotient": lambda: str(round(float(numbers[0]), 2)),
        "picture_mean": lambda: str(round(float(numbers[0]))),
        "picture_size": lambda: str(sum(map(int, numbers))),
    }[name]()


def _look_up(rng, mood: Mood, entity: str, attribute: str) -> Generator[str, Feedback, str]:
    """Search for a fact and read it off the results."""
    thought = _say(rng, "I search for it.", "I look that up.", "The search will know.")
    if mood.slip:
        yield f'{thought}<tool_call>\n{{"name": "search", "query": "{entity}"}}\n</tool_call>'
        thought = _say(rng, "The call was wrong. I fix it.", "Again, with arguments.")
    query = entity if mood.vague else f"{attribute} of {entity}"
    feedback = yield _call(thought, "search", query=query)
    sentence = re.compile(rf"The {re.escape(attribute)} of {re.escape(entity)} is (.+)\.$")
    overview = re.compile(rf"{re.escape(entity)}: .*?\b{re.escape(attribute)} ([^;]+?)(?:;|\.$)")
    for pattern in (sentence, overview):
        for _, snippet in feedback.items:
            if match := pattern.match(snippet):
                return match.group(1)
    raise CannotSolve(f"no result for {query!r} states the {attribute} of {entity}")


def _search(question: Question, mood: Mood, rng: np.random.Generator) -> Play:
    value = yield from _look_up(rng, mood, question.meta["entity"], question.meta["attribute"])
    yield _answer(rng, value)


def _recognise(rng) -> Generator[str, Feedback, str]:
    feedback = yield _call(_say(rng, "I search by the picture.", "Where is this from?"), "image_search")
    for title, _ in feedback.items:
        if match := re.match(r"(?:Postcard from|Display of) (.+)$", title):
            return match.group(1)
    raise CannotSolve("the picture was not found")


def _integration(question: Question, mood: Mood, rng: np.random.Generator) -> Play:
    meta = question.meta
    calm = Mood(mood.half, mood.hasty, mood.vague, mood.needless, slip=False)
    if meta["kind"] == "recognise":
        entity = yield from _recognise(rng)
        value = yield from _look_up(rng, calm, entity, meta["attribute"])
        expression = f"{value} * {meta['factor']}"
    else:
        digit = yield from _zoom(rng, calm, meta["x"], meta["y"])
        value = yield from _look_up(rng, calm, meta["entity"], meta["attribute"])
        expression = f"{value} + {digit}"
    thought = _say(rng, "Now I compute.", "I compute it.")
    feedback = yield from _compute(rng, mood, thought, f"print({expression})")
    yield _answer(rng, _last_number(feedback.stdout))


def _plain(question: Question, mood: Mood, rng: np.random.Generator) -> Play:
    if mood.needless:
        yield _call(_say(rng, "I search for the picture first.", "Maybe others know it."), "image_search")
    image = drawing.load(question.images[0])
    if question.meta["kind"] == "digit":
        inner = int(image.width * 0.8)
        edge = (image.width - inner) // 2
        value = str(drawing.read_digit(image.crop((edge, edge, edge + inner, edge + inner))))
    else:
        seen = np.asarray(image).astype(int)[2:5, 2:5].mean((0, 1))
        value = min(drawing.COLOURS, key=lambda name: np.abs(seen - drawing.COLOURS[name]).sum())
    thought = _say(rng, "I can see it.", "That is plain to see.")
    yield f"{thought}<answer>{value}</answer>"
