"""Generates the pre-training corpus of the base model: captions, plain questions, notes to read, snippets of code.

The base model learns to recognize digits and colors, to copy, to read notes and to write small programs. No document
contains a dialogue with a tool. The stream is endless and deterministic in its seed; only data of the training split
is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from dv2_jax.agent.prompts import build_messages
from dv2_jax.config import AgentConfig
from dv2_jax.data.chat_encoder import ChatEncoder, ImageInput
from dv2_jax.data.packing import Example
from dv2_jax.data.question import Question
from dv2_jax.toy.styles import LOOSE, TIGHT
from dv2_jax.toy.tasks import drawing, facts, lookup, plain, reasoning
from dv2_jax.toy.tasks.perception import PLAIN_PLATE

# Phases as (number of examples, shares of document kinds): recognition first, then copying and reading. The last
# phase is endless.
PHASES = (
    (
        20_000,
        {
            "gallery": 0.30,
            "plain_chat": 0.12,
            "repeats": 0.08,
            "pairs": 0.10,
            "notes": 0.12,
            "notes_chat": 0.06,
            "code": 0.22,
        },
    ),
    (
        None,
        {
            "gallery": 0.10,
            "plain_chat": 0.05,
            "repeats": 0.14,
            "pairs": 0.20,
            "notes": 0.18,
            "notes_chat": 0.07,
            "notes_code": 0.05,
            "code": 0.21,
        },
    ),
)
GALLERY_POOL = 3000  # images cached per kind and reused in many contexts
WRAPPINGS = (" {}", '"{}"', "[{}]", "({})", "<answer>{}</answer>")  # in each, the copy starts with a different token
_SYLLABLES = [c + v + e for c in "bdfgklmnprstvz" for v in "aeiou" for e in ("", "n", "r", "s", "l")]


class Curriculum:
    """Yields an endless stream of pre-training examples."""

    def __init__(self, encoder: ChatEncoder, agent: AgentConfig, seed: int, phases=PHASES):
        self.encoder = encoder
        self.agent = agent
        self.rng = np.random.default_rng([seed, 7])
        self.phases = phases
        self._pool: dict[str, list[tuple[ImageInput, str]]] = {"tight": [], "wide": [], "plate": []}
        self._facts = [fact for fact in facts.facts_of("train") if len(fact.value) < 24]
        self._names = sorted({fact.entity for fact in self._facts})
        pieces = (encoder.tokenizer.decode([i]) for i in range(encoder.tokenizer.vocab_size))
        self._pieces = sorted(
            {piece.strip() for piece in pieces if piece.strip().isascii() and piece.strip().isalpha()}
        )

    def __iter__(self) -> Iterator[Example]:
        for count, shares in self.phases:
            names = list(shares)
            weights = np.array([shares[name] for name in names])
            makers: list[Callable[[], Example]] = [getattr(self, f"_{name}") for name in names]
            for _ in itertools.count() if count is None else range(count):
                yield makers[int(self.rng.choice(len(names), p=weights / weights.sum()))]()

    def _example(self, parts: list[tuple[list[int], float]], images: tuple[ImageInput, ...] = ()) -> Example:
        """Joins parts of (ids, loss weight of each id)."""
        ids = [id_ for part, _ in parts for id_ in part]
        weight = [w for part, w in parts for _ in part]
        return Example(ids, weight, images)

    def _text(self, text: str) -> list[int]:
        return self.encoder.tokenizer.encode(text)

    def captioned_image(self, kind: str) -> tuple[ImageInput, str]:
        """Returns an image of the kind and its caption: once the pool is full, mostly one that was used before."""
        pool = self._pool[kind]
        if len(pool) < GALLERY_POOL or self.rng.random() < 0.1:
            image, caption = draw_captioned_image(self.rng, kind)
            pair = (self.encoder.encode_image(drawing.encode(image)), caption)
            if len(pool) < GALLERY_POOL:
                pool.append(pair)
            else:
                pool[int(self.rng.integers(len(pool)))] = pair
            return pair
        return pool[int(self.rng.integers(len(pool)))]

    def _gallery(self) -> Example:
        """Makes a sequence of images, each followed by its caption."""
        kind = str(self.rng.choice(("tight", "wide", "plate"), p=(0.5, 0.3, 0.2)))
        parts: list[tuple[list[int], float]] = []
        images: list[ImageInput] = []
        for _ in range(int(self.rng.integers(6, 20)) if kind == "tight" else int(self.rng.integers(3, 8))):
            image, caption = self.captioned_image(kind)
            if image.digest in {other.digest for other in images}:
                continue
            images.append(image)
            parts.append((self.encoder.encode_content("<image>", [image], trusted=True), 0.0))
            parts.append((self._text(f"{caption}\n"), 1.0))
        return self._example(parts, tuple(images))

    def _plain_chat(self) -> Example:
        """Makes a question that needs no tool, in the format of the agent's dialogue."""
        image, caption = self.captioned_image("plate")
        digit, color = caption.split()
        asks_digit = self.rng.random() < 0.5
        text = str(self.rng.choice(plain.DIGIT_PHRASES if asks_digit else plain.COLOR_PHRASES))
        return self._chat(text, digit if asks_digit else color, (image,))

    def _chat(self, text: str, answer: str, images: tuple[ImageInput, ...] = ()) -> Example:
        question = Question("pretraining", "plain", "perception", text, (b"",) * len(images), answer)
        prompt = self.encoder.encode_prompt(build_messages(question, self.agent.system_prompt), images)
        thoughts = ("I can see it.", "That is plain to see.") if images else ("I have it.", "Done.")
        thought = str(self.rng.choice(thoughts))
        turn = self._text(f"<think>{thought}</think>\n<answer>{answer}</answer>")
        return self._example([(list(prompt.token_ids), 0.0), ([*turn, self.encoder.im_end], 1.0)], images)

    def _word(self) -> str:
        """Draws a name, mostly composed of random syllables or tokens, so that copying does not rely on known names."""
        draw = self.rng.random()
        if draw < 0.2:
            return self._names[int(self.rng.integers(len(self._names)))]
        parts, longest = (_SYLLABLES, 3) if draw < 0.6 else (self._pieces, 4)
        words = [
            "".join(self.rng.choice(parts, int(self.rng.integers(1, longest + 1))))
            for _ in range(self.rng.integers(1, 3))
        ]
        return " ".join(word.capitalize() if self.rng.random() < 0.8 else word for word in words)

    def _number(self) -> str:
        digits = int(self.rng.integers(1, 10))
        text = str(int(self.rng.integers(10 ** (digits - 1), 10**digits)))
        return f"{text}.{self.rng.integers(0, 10**4)}" if self.rng.random() < 0.15 else text

    def _repeats(self) -> Example:
        """Makes a random sequence of names and numbers, twice: it trains copying (induction)."""
        count = int(self.rng.integers(3, 12))
        text = " ".join(self._number() if self.rng.random() < 0.5 else self._word() for _ in range(count))
        return self._example([(self._text(f"{text}\n"), 0.0), (self._text(f"{text}\n"), 1.0)])

    def _pairs(self) -> Example:
        """Makes names with values, then the values again by name, each in a random wrapping."""
        count = int(self.rng.integers(2, 7))
        table = {self._word(): (self._number() if self.rng.random() < 0.4 else self._word()) for _ in range(count)}
        parts = [(self._text("".join(f"{name} is {value}.\n" for name, value in table.items())), 0.1)]
        for name in self.rng.permutation(list(table)):
            parts += [(self._text(f"{name}:"), 0.1), (self._text(f"{self._wrapped(table[name])}\n"), 1.0)]
        return self._example(parts)

    def _wrapped(self, text: str) -> str:
        return WRAPPINGS[int(self.rng.integers(len(WRAPPINGS)))].format(text)

    def _fact(self) -> facts.Fact:
        fact = self._facts[int(self.rng.integers(len(self._facts)))]
        if self.rng.random() < 0.4:
            return fact
        value = self._number().split(".")[0] if fact.numeric else self._word()
        return facts.Fact(self._word(), fact.kind, fact.attribute, value, fact.numeric)

    def _notes_text(self) -> tuple[str, facts.Fact]:
        """Returns notes in the layout of search results, and a fact that one of them states."""
        fact = self._fact()
        others = [self._fact() for _ in range(int(self.rng.integers(0, 4)))]
        if self.rng.random() < 0.5:  # an overview with several attributes of the same entity
            values = {other.attribute: other.value for other in self._related_facts(fact)}
            values[fact.attribute] = fact.value
            keys = [str(key) for key in self.rng.permutation(list(values))]
            pages = [(fact.entity, f"{fact.entity}: " + "; ".join(f"{key} {values[key]}" for key in keys) + ".")]
        else:
            pages = [(fact.title, fact.sentence)]
            others += self._related_facts(fact)[: int(self.rng.integers(0, 3))]
        pages += [(other.title, other.sentence) for other in others]
        if self.rng.random() < 0.5:
            pages = [pages[i] for i in self.rng.permutation(len(pages))]
        items = [
            f"{i}. [{title}](kb:{self.rng.integers(9999)})\n\n{text}" for i, (title, text) in enumerate(pages[:4], 1)
        ]
        if not any(fact.value in item for item in items):
            items[0] = f"1. [{fact.title}](kb:1)\n\n{fact.sentence}"
        return "\n\n".join(items), fact

    def _related_facts(self, fact: facts.Fact) -> list[facts.Fact]:
        """Invents values for up to four other attributes of the fact's entity."""
        attributes = {
            f.attribute: f.numeric for f in self._facts if f.kind == fact.kind and f.attribute != fact.attribute
        }
        return [
            facts.Fact(fact.entity, fact.kind, name, self._number() if numeric else self._word(), numeric)
            for name, numeric in list(attributes.items())[:4]
        ]

    def _notes(self) -> Example:
        notes, fact = self._notes_text()
        question = str(self.rng.choice(lookup.PHRASES)).format(attribute=fact.attribute, entity=fact.entity)
        parts = [(self._text(f"{question}\n"), 0.0)]
        if self.rng.random() < 0.5:
            subject = fact.entity if self.rng.random() < 0.4 else f"{fact.attribute} of {fact.entity}"
            parts += [(self._text("Look for:"), 0.0), (self._text(f"{self._wrapped(subject)}\n"), 1.0)]
        parts += [(self._text(f"{notes}\n\n"), 0.05), (self._text(f"<answer>{fact.value}</answer>\n"), 1.0)]
        return self._example(parts)

    def _notes_chat(self) -> Example:
        notes, fact = self._notes_text()
        question = str(self.rng.choice(lookup.PHRASES)).format(attribute=fact.attribute, entity=fact.entity)
        return self._chat(f"{notes}\n\n{question}", fact.value)

    def _notes_code(self) -> Example:
        """Makes notes, a program that computes with a number in them, its output, and the output as the answer."""
        notes, fact = self._notes_text()
        while not fact.numeric:
            notes, fact = self._notes_text()
        factor, times = int(self.rng.integers(1, 99)), self.rng.random() < 0.5
        task = (
            f"Multiply the {fact.attribute} of {fact.entity} by {factor}."
            if times
            else f"Add {factor} to the {fact.attribute} of {fact.entity}."
        )
        value = int(fact.value)
        code, result = (f"{value} * {factor}", value * factor) if times else (f"{value} + {factor}", value + factor)
        return self._example(
            [
                (self._text(f"{task}\n{notes}\n\n```python\n"), 0.05),
                (self._text(f"print({code})\n```\n"), 1.0),
                (self._text(f"```\n{result}\n```\n"), 0.05),
                (self._text(f"<answer>{result}</answer>\n"), 1.0),
            ]
        )

    def _code(self) -> Example:
        """Makes a task and a program for it."""
        draw = int(self.rng.integers(12))
        if draw >= 10:
            color, margin = str(self.rng.choice(list(drawing.COLORS))), int(self.rng.integers(3, 70))
            task = str(self.rng.choice(("Crop the {} tag.", "Where is the {} tag?", "Zoom in on the {} tag."))).format(
                color
            )
            code = (
                "import numpy as np\n"
                f"d = np.asarray(image_1).astype(int) - {drawing.COLORS[color]}\n"
                f"y, x = np.nonzero(abs(d).sum(2) < 60)\nr = {margin}\n"
                "display(image_1.crop((x.min() - r, y.min() - r, x.max() + r + 1, y.max() + r + 1)))"
            )
            task = f"{task} Leave {margin} pixels around it."
        elif draw < 5:
            kind = reasoning.KINDS[int(self.rng.integers(len(reasoning.KINDS)))]
            values = {key: int(value) for key, value in kind.draw_values(self.rng).items()}
            task = str(self.rng.choice(kind.phrases)).format(**values)
            code = (kind.incomplete_code if kind.incomplete_code and self.rng.random() < 0.5 else kind.code).format(
                **values
            )
        elif draw < 8:
            x, y, half = self.rng.integers(100, 1100), self.rng.integers(100, 900), self.rng.choice((TIGHT, *LOOSE))
            task = f"Crop the picture around x={x}, y={y}."
            code = f"x, y, r = {x}, {y}, {half}\ndisplay(image_1.crop((x - r, y - r, x + r, y + r)))"
        else:
            a, b, sign = self._number(), self._number(), str(self.rng.choice(("+", "*", "-")))
            task, code = f"Compute {a} {sign} {b}.", f"print({a} {sign} {b})"
        return self._example([(self._text(f"{task}\n```python\n"), 0.0), (self._text(f"{code}\n```\n"), 1.0)])


def draw_captioned_image(rng: np.random.Generator, kind: str) -> tuple[Image.Image, str]:
    """Returns an image and its caption: a crop as a tool returns it (kinds `tight` and `wide`), or a `plate`."""
    if kind == "plate":
        color = str(rng.choice(list(drawing.COLORS)))
        image, label = drawing.digit_plate(rng, "train", drawing.COLORS[color])
        return image, f"{label} {color}"
    half = TIGHT + int(rng.integers(-2, 3)) if kind == "tight" else int(rng.choice(LOOSE)) + int(rng.integers(-6, 7))
    side = 2 * half
    scale = 3  # scenes enlarge their photographs about threefold
    image = drawing.background(rng, "train", (side // scale + 1, side // scale + 1)).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    digit, label = drawing.random_digit(rng, "train")
    frames = [PLAIN_PLATE, PLAIN_PLATE, *drawing.COLORS.values()]
    tag = drawing.digit_tag(digit, frames[int(rng.integers(len(frames)))])
    shift = rng.integers(-2, 3, 2)
    corner = (half - drawing.TAG // 2 + int(shift[0]), half - drawing.TAG // 2 + int(shift[1]))
    image.paste(tag, corner)
    return image, str(label)
