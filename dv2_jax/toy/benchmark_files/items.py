"""Questions with images of the embedded tasks, as items of benchmark files."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from dv2_jax.data.question import Question
from dv2_jax.toy.tasks import drawing, lookup, perception, plain, reasoning
from dv2_jax.toy.tasks.facts import Split

SPLIT: Split = "eval"  # held out: the shipped policies have seen neither these images nor these entities
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CHART_COLORS = tuple(drawing.COLORS)


@dataclass(frozen=True)
class Item:
    """A question about at most one image."""

    text: str
    answer: str
    image: bytes | None
    kind: str

    @classmethod
    def of(cls, question: Question) -> Item:
        return cls(question.text, question.answer, next(iter(question.images), None), question.meta["kind"])


def random_stream(seed: int, *place: str | int) -> np.random.Generator:
    """Returns a generator that depends on the seed and on the place of its use alone."""
    words = [part if isinstance(part, int) else zlib.crc32(part.encode()) for part in place]
    return np.random.default_rng([seed, *words])


def _image_reasoning(rng: np.random.Generator) -> Item:
    kinds = [kind for kind in reasoning.KINDS if kind.needs_image]
    return Item.of(reasoning.make_question(kinds[int(rng.integers(len(kinds)))], rng, SPLIT, ""))


def _maker(make: Callable[[np.random.Generator, Split, str], Question]) -> Callable[[np.random.Generator], Item]:
    return lambda rng: Item.of(make(rng, SPLIT, ""))


# Name → what makes an item of that kind.
MAKERS: dict[str, Callable[[np.random.Generator], Item]] = {
    "point": _maker(perception.point_question),
    "color": _maker(perception.color_question),
    "image numbers": _image_reasoning,
    "recognize": _maker(lookup.image_lookup_question),
    "read and look up": _maker(lookup.digit_lookup_question),
    "look up": _maker(lookup.search_question),
    "digit": _maker(plain.digit_question),
    "frame color": _maker(plain.frame_color_question),
}


def plate_scene(rng: np.random.Generator, questions: int) -> list[Item]:
    """Returns questions about several positions of one image."""
    image, centers, labels = drawing.scene(rng, SPLIT, [perception.PLAIN_PLATE] * 6)
    encoded = drawing.encode(image)
    phrases = [str(rng.choice(perception.POINT_PHRASES)) for _ in range(questions)]
    return [
        Item(phrase.format(x=x, y=y), str(label), encoded, "point")
        for phrase, (x, y), label in zip(phrases, centers, labels, strict=False)
    ]


def bar_chart(rng: np.random.Generator) -> tuple[bytes, dict[str, int]]:
    """Returns an image of gray bars, each under a tag of another color with a digit, and the digit of each color."""
    width, height = drawing.SCENE
    image = Image.new("RGB", drawing.SCENE, (250, 250, 250))
    draw = ImageDraw.Draw(image)
    left, bottom = drawing.MARGIN, height - drawing.MARGIN
    draw.line([(left, 120), (left, bottom), (width - 120, bottom)], fill=(60, 60, 60), width=3)
    digits: dict[str, int] = {}
    step = (width - 2 * drawing.MARGIN) // len(CHART_COLORS)
    for column, color in enumerate(rng.permutation(CHART_COLORS)):
        digit, label = drawing.random_digit(rng, SPLIT)
        x, top = left + step * column + step // 2, int(rng.integers(drawing.MARGIN + 40, bottom - 60))
        draw.rectangle([x - 30, top, x + 30, bottom], fill=(150, 150, 150))
        image.paste(drawing.digit_tag(digit, drawing.COLORS[str(color)]), (x - drawing.TAG // 2, top - drawing.TAG))
        draw.text((x - 6, bottom + 8), f"Q{column + 1}", fill=(60, 60, 60))
        digits[str(color)] = label
    return drawing.encode(image), digits


def chart_item(rng: np.random.Generator) -> Item:
    """Asks for a value of a bar chart."""
    image, digits = bar_chart(rng)
    color = str(rng.choice(CHART_COLORS))
    return Item(str(rng.choice(perception.COLOR_PHRASES)).format(color=color), str(digits[color]), image, "chart")


def options_for(rng: np.random.Generator, answer: str, count: int = 4) -> list[str]:
    """Returns `count` different options in random order, one of them the answer, which is a number or a color."""
    if answer.isdigit():
        near = [int(answer) + offset for offset in range(-9, 10) if offset and int(answer) + offset >= 0]
        others = [str(value) for value in near if (value < 10) == (int(answer) < 10)]
    else:
        others = [color for color in drawing.COLORS if color != answer]
    chosen = [answer, *(str(other) for other in rng.choice(others, count - 1, replace=False))]
    return [chosen[i] for i in rng.permutation(count)]
