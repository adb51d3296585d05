"""What the base model is trained on, from nothing: captions, plain questions, notes to read, snippets of code.

It learns to see digits and colours, to copy, to read notes and to write small programs. No document holds a
dialogue with a tool. Endless and deterministic in its seed; only training-split material is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from dv2_jax.agent.prompts import messages
from dv2_jax.config import AgentConfig
from dv2_jax.data.chat_encoder import ChatEncoder, PictureInput
from dv2_jax.data.packing import Example
from dv2_jax.data.question import Question
from dv2_jax.toy.styles import LOOSE, TIGHT
from dv2_jax.toy.tasks import drawing, facts, lookup, plain, reasoning

# First to see, then to copy and to read: (examples, shares of document kinds); the last phase has no end.
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
GALLERY_POOL = 3000  # pictures kept per kind and drawn again; each is shown in many contexts
WRAPPINGS = (" {}", '"{}"', "[{}]", "({})", "<answer>{}</answer>")  # a copy begins with another token in each
_SYLLABLES = [c + v + e for c in "bdfgklmnprstvz" for v in "aeiou" for e in ("", "n", "r", "s", "l")]


class Curriculum:
    """An endless stream of pre-training examples."""

    def __init__(self, encoder: ChatEncoder, agent: AgentConfig, seed: int, phases=PHASES):
        self.encoder, self.agent = encoder, agent
        self.rng = np.random.default_rng([seed, 7])
        self.phases = phases
        self._pool: dict[str, list[tuple[PictureInput, str]]] = {"tight": [], "wide": [], "plate": []}
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

    def _example(self, parts: list[tuple[list[int], float]], seen: tuple[PictureInput, ...] = ()) -> Example:
        ids = [id_ for part, _ in parts for id_ in part]
        weight = [w for part, w in parts for _ in part]
        return Example(ids, weight, seen)

    def _text(self, text: str) -> list[int]:
        return self.encoder.tokenizer.encode(text)

    # Pictures.

    def picture(self, kind: str) -> tuple[PictureInput, str]:
        """A picture of the kind and its caption, often one that was shown before."""
        pool = self._pool[kind]
        if len(pool) < GALLERY_POOL or self.rng.random() < 0.1:
            image, caption = draw_picture(self.rng, kind)
            made = (self.encoder.picture(drawing.encode(image)), caption)
            if len(pool) < GALLERY_POOL:
                pool.append(made)
            else:
                pool[int(self.rng.integers(len(pool)))] = made
            return made
        return pool[int(self.rng.integers(len(pool)))]

    def _gallery(self) -> Example:
        """Pictures with captions, one after another."""
        kind = str(self.rng.choice(("tight", "wide", "plate"), p=(0.5, 0.3, 0.2)))
        parts, seen = [], []
        for _ in range(int(self.rng.integers(6, 20)) if kind == "tight" else int(self.rng.integers(3, 8))):
            picture, caption = self.picture(kind)
            if picture.digest in {other.digest for other in seen}:
                continue
            seen.append(picture)
            parts += [(self.encoder.body("<image>", [picture], trusted=True), 0.0), (self._text(f"{caption}\n"), 1.0)]
        return self._example(parts, tuple(seen))

    def _plain_chat(self) -> Example:
        """A question that can be answered at sight, in the form of the agent's dialogue."""
        picture, caption = self.picture("plate")
        digit, colour = caption.split()
        wanted = self.rng.random() < 0.5
        text = str(self.rng.choice(plain.DIGIT_PHRASES if wanted else plain.COLOUR_PHRASES))
        return self._chat(text, digit if wanted else colour, (picture,))

    def _chat(self, text: str, answer: str, seen: tuple[PictureInput, ...] = ()) -> Example:
        question = Question("pretraining", "plain", "perception", text, (b"",) * len(seen), answer)
        prompt = self.encoder.prompt(messages(question, self.agent.system_prompt), seen)
        thought = str(self.rng.choice(("I can see it.", "That is plain to see.") if seen else ("I have it.", "Done.")))
        turn = self._text(f"<think>{thought}</think>\n<answer>{answer}</answer>")
        return self._example([(list(prompt.token_ids), 0.0), ([*turn, self.encoder.im_end], 1.0)], seen)

    # Text.

    def _word(self) -> str:
        """A name, mostly made up of syllables or of any pieces: copying must not depend on having seen it."""
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
        """Names and numbers without meaning, twice: what teaches a small transformer to copy at all."""
        count = int(self.rng.integers(3, 12))
        text = " ".join(self._number() if self.rng.random() < 0.5 else self._word() for _ in range(count))
        return self._example([(self._text(f"{text}\n"), 0.0), (self._text(f"{text}\n"), 1.0)])

    def _pairs(self) -> Example:
        """Names with values, then the values once more by name, in one wrapping or another."""
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
        """Notes laid out like result pages, of which one states the fact."""
        fact = self._fact()
        others = [self._fact() for _ in range(int(self.rng.integers(0, 4)))]
        if self.rng.random() < 0.5:  # an overview that holds several attributes of the same entity
            near = {other.attribute: other.value for other in self._near(fact)} | {fact.attribute: fact.value}
            keys = [str(key) for key in self.rng.permutation(list(near))]
            pages = [(fact.entity, f"{fact.entity}: " + "; ".join(f"{key} {near[key]}" for key in keys) + ".")]
        else:
            pages = [(fact.title, fact.sentence)]
            others += self._near(fact)[: int(self.rng.integers(0, 3))]
        pages += [(other.title, other.sentence) for other in others]
        if self.rng.random() < 0.5:
            pages = [pages[i] for i in self.rng.permutation(len(pages))]
        items = [
            f"{i}. [{title}](kb:{self.rng.integers(9999)})\n\n{text}" for i, (title, text) in enumerate(pages[:4], 1)
        ]
        if not any(fact.value in item for item in items):
            items[0] = f"1. [{fact.title}](kb:1)\n\n{fact.sentence}"
        return "\n\n".join(items), fact

    def _near(self, fact: facts.Fact) -> list[facts.Fact]:
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
        """Notes, and a program that computes with a number in them; what it printed is the answer."""
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
        """A task and a program for it."""
        draw = int(self.rng.integers(12))
        if draw >= 10:
            colour, margin = str(self.rng.choice(list(drawing.COLOURS))), int(self.rng.integers(3, 70))
            task = str(self.rng.choice(("Crop the {} tag.", "Where is the {} tag?", "Zoom in on the {} tag."))).format(
                colour
            )
            code = (
                "import numpy as np\n"
                f"d = np.asarray(image_1).astype(int) - {drawing.COLOURS[colour]}\n"
                f"y, x = np.nonzero(abs(d).sum(2) < 60)\nr = {margin}\n"
                "display(image_1.crop((x.min() - r, y.min() - r, x.max() + r + 1, y.max() + r + 1)))"
            )
            task = f"{task} Leave {margin} pixels around it."
        elif draw < 5:
            kind = reasoning.KINDS[int(self.rng.integers(len(reasoning.KINDS)))]
            values = {key: int(value) for key, value in kind.draw(self.rng).items()}
            task = str(self.rng.choice(kind.phrases)).format(**values)
            code = (kind.hasty if kind.hasty and self.rng.random() < 0.5 else kind.code).format(**values)
        elif draw < 8:
            x, y, half = self.rng.integers(100, 1100), self.rng.integers(100, 900), self.rng.choice((TIGHT, *LOOSE))
            task = f"Crop the picture around x={x}, y={y}."
            code = f"x, y, r = {x}, {y}, {half}\ndisplay(image_1.crop((x - r, y - r, x + r, y + r)))"
        else:
            a, b, sign = self._number(), self._number(), str(self.rng.choice(("+", "*", "-")))
            task, code = f"Compute {a} {sign} {b}.", f"print({a} {sign} {b})"
        return self._example([(self._text(f"{task}\n```python\n"), 0.0), (self._text(f"{code}\n```\n"), 1.0)])


def draw_picture(rng: np.random.Generator, kind: str) -> tuple[Image.Image, str]:
    """A crop as a tool would return it (`tight`, `wide`) or a `plate`; and its caption."""
    if kind == "plate":
        colour = str(rng.choice(list(drawing.COLOURS)))
        image, label = drawing.plate(rng, "train", drawing.COLOURS[colour])
        return image, f"{label} {colour}"
    half = TIGHT + int(rng.integers(-2, 3)) if kind == "tight" else int(rng.choice(LOOSE)) + int(rng.integers(-6, 7))
    side = 2 * half
    scale = 3  # scenes are photographs enlarged about threefold
    image = drawing.background(rng, "train", (side // scale + 1, side // scale + 1)).resize(
        (side, side), Image.Resampling.BILINEAR
    )
    digit, label = drawing.random_digit(rng, "train")
    frames = [plain_plate := (245, 245, 240), plain_plate, *drawing.COLOURS.values()]
    plate = drawing.tag(digit, frames[int(rng.integers(len(frames)))])
    shift = rng.integers(-2, 3, 2)
    corner = (half - drawing.TAG // 2 + int(shift[0]), half - drawing.TAG // 2 + int(shift[1]))
    image.paste(plate, corner)
    return image, str(label)
