"""Search and integration questions: facts from the search index, alone or combined with an image and arithmetic."""

from __future__ import annotations

import numpy as np

from dv2_jax.data.question import Question
from dv2_jax.toy.tasks import drawing, facts, perception
from dv2_jax.toy.tasks.facts import Fact, Split

PHRASES = (
    "What is the {attribute} of {entity}?",
    "Tell me the {attribute} of {entity}.",
    "{entity}: what is its {attribute}?",
)
KIND_NAMES = {"country": "country", "element": "chemical element"}
TITLES = {"country": "Postcard from {entity}", "element": "Display of {entity}"}


def search_question(rng: np.random.Generator, split: Split, name: str) -> Question:
    """Asks for one fact of one entity."""
    fact = _draw(rng, split, str(rng.choice(("country", "country", "element", "city"))))
    return Question(
        id=name,
        skill="search",
        data_source="search",
        text=str(rng.choice(PHRASES)).format(attribute=fact.attribute, entity=fact.entity),
        images=(),
        answer=fact.value,
        verifier="number" if fact.numeric else "text",
        meta={"kind": "search", "entity": fact.entity, "attribute": fact.attribute},
    )


def image_lookup_question(rng: np.random.Generator, split: Split, name: str) -> Question:
    """Asks for the product of a factor and a fact about the entity that image search identifies."""
    fact = _draw(rng, split, str(rng.choice(("country", "element"))), numeric=True, small=True)
    factor = int(rng.integers(12, 99))
    image = drawing.rephotographed(rng, drawing.entity_image(fact.entity, split))
    return Question(
        id=name,
        skill="integration",
        data_source="search",
        text=f"Which {KIND_NAMES[fact.kind]} does the picture belong to? Multiply its {fact.attribute} by {factor}.",
        images=(drawing.encode(image),),
        answer=str(int(fact.value) * factor),
        verifier="number",
        meta={"kind": "recognise", "entity": fact.entity, "attribute": fact.attribute, "factor": factor},
    )


def digit_lookup_question(rng: np.random.Generator, split: Split, name: str) -> Question:
    """Asks for the sum of a digit in the scene and a fact from the search index."""
    base = perception.point_question(rng, split, name)
    fact = _draw(rng, split, str(rng.choice(("country", "element"))), numeric=True, small=True)
    x, y = base.meta["x"], base.meta["y"]
    return Question(
        id=name,
        skill="integration",
        data_source="search",
        text=f"Add the digit at x={x}, y={y} to the {fact.attribute} of {fact.entity}.",
        images=base.images,
        answer=str(int(base.answer) + int(fact.value)),
        verifier="number",
        meta={
            "kind": "read_and_look_up",
            "x": x,
            "y": y,
            "digit": base.answer,
            "entity": fact.entity,
            "attribute": fact.attribute,
        },
    )


def image_index_entries() -> list[tuple[str, str]]:
    """Returns (entity, title) of every image in the image index."""
    kinds = {fact.entity: fact.kind for fact in facts.facts() if fact.kind in TITLES}
    return [(entity, TITLES[kind].format(entity=entity)) for entity, kind in kinds.items()]


def _draw(rng: np.random.Generator, split: Split, kind: str, numeric: bool | None = None, small: bool = False) -> Fact:
    options = facts.facts_of(split, kind, numeric)
    while True:
        fact = options[int(rng.integers(len(options)))]
        if not small or len(fact.value) <= 4:
            return fact
