"""Reasoning questions: an exact computation on numbers in the question, or on pixels of the image, that needs code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dv2_jax.data.question import Question
from dv2_jax.toy.tasks import drawing
from dv2_jax.toy.tasks.facts import Split


@dataclass(frozen=True)
class ReasoningKind:
    """A kind of question, the code that computes its answer, and code that leaves the last step to the model."""

    name: str
    phrases: tuple[str, ...]
    draw_values: Callable[[np.random.Generator], dict[str, int]]
    solve: Callable[..., int | float]
    code: str  # prints the answer
    incomplete_code: str = ""  # prints an intermediate result; empty if the kind has none
    needs_image: bool = False


def _mean(image: np.ndarray) -> int:
    return round(float(image.mean()))


def _primes(a: int, b: int) -> int:
    return sum(all(n % d for d in range(2, math.isqrt(n) + 1)) for n in range(a, b) if n > 1)


KINDS: tuple[ReasoningKind, ...] = (
    ReasoningKind(
        "multiply_add",
        ("What is {a} times {b} plus {c}?", "Multiply {a} by {b} and add {c}."),
        lambda rng: {"a": rng.integers(12, 999), "b": rng.integers(12, 999), "c": rng.integers(11, 999)},
        lambda a, b, c: a * b + c,
        "print({a} * {b} + {c})",
        "print({a} * {b})",
    ),
    ReasoningKind(
        "remainder",
        ("What is the remainder of {a} divided by {b}?", "Divide {a} by {b}. What is the remainder?"),
        lambda rng: {"a": rng.integers(1000, 99999), "b": rng.integers(11, 499)},
        lambda a, b: a % b,
        "print({a} % {b})",
        "print(divmod({a}, {b}))",
    ),
    ReasoningKind(
        "common_divisor",
        ("What is the greatest common divisor of {a} and {b}?",),
        lambda rng: {"a": (g := int(rng.integers(2, 60))) * rng.integers(3, 90), "b": g * rng.integers(3, 90)},
        lambda a, b: math.gcd(a, b),
        "import math\nprint(math.gcd({a}, {b}))",
    ),
    ReasoningKind(
        "primes",
        ("How many prime numbers are there from {a} up to {b}?", "Count the primes from {a} up to {b}."),
        lambda rng: {"a": (a := int(rng.integers(10, 400))), "b": a + rng.integers(20, 400)},
        lambda a, b: _primes(a, b + 1),
        "import sympy\nprint(len(list(sympy.primerange({a}, {b} + 1))))",
        "import sympy\nprint(list(sympy.primerange({a}, {b} + 1))[-1])\nprint(sympy.primepi({b}), sympy.primepi({a} - 1))",
    ),
    ReasoningKind(
        "quotient",
        ("What is {a} divided by {b}, rounded to two decimals?",),
        lambda rng: {"a": rng.integers(100, 9999), "b": rng.integers(11, 199)},
        lambda a, b: round(a / b, 2),
        "print(round({a} / {b}, 2))",
        "print({a} / {b})",
    ),
    ReasoningKind(
        "picture_mean",
        ("What is the mean pixel value of the picture, rounded?", "How bright is the picture on average, rounded?"),
        lambda rng: {},
        _mean,
        "import numpy as np\nprint(round(np.asarray(image_1).mean()))",
        "import numpy as np\nprint(np.asarray(image_1).mean())",
        needs_image=True,
    ),
    ReasoningKind(
        "picture_count",
        ("How many pixels of the picture have a red value above {t}?",),
        lambda rng: {"t": rng.integers(60, 240)},
        lambda image, t: int((image[:, :, 0] > t).sum()),
        "import numpy as np\nprint((np.asarray(image_1)[:, :, 0] > {t}).sum())",
        needs_image=True,
    ),
    ReasoningKind(
        "picture_size",
        ("What is the sum of the picture's width and height in pixels?",),
        lambda rng: {},
        lambda image: image.shape[0] + image.shape[1],
        "print(sum(image_1.size))",
        "print(image_1.size)",
        needs_image=True,
    ),
)
KIND_BY_NAME = {kind.name: kind for kind in KINDS}


def make_question(kind: ReasoningKind, rng: np.random.Generator, split: Split, name: str) -> Question:
    values = {key: int(value) for key, value in kind.draw_values(rng).items()}
    if kind.needs_image:
        size = (int(rng.integers(240, 640)), int(rng.integers(200, 480)))
        images = (drawing.encode(drawing.background(rng, split, size)),)
        answer = kind.solve(np.asarray(drawing.load(images[0])), **values)
    else:
        images = ()
        answer = kind.solve(**values)
    return Question(
        id=name,
        skill="reasoning",
        data_source="reason",
        text=str(rng.choice(kind.phrases)).format(**values),
        images=images,
        answer=str(answer),
        verifier="number",
        meta={"kind": kind.name, **values},
    )
