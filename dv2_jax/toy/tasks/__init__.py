"""The default tasks: questions with exact answers about real images and facts, from data in installed packages.

There are five skills (perception, reasoning, search, integration, plain), and each question names its verifier.
Training and held-out questions share no entity, digit, photograph or random stream.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dv2_jax.data.question import Question
from dv2_jax.files import atomic_write
from dv2_jax.toy.tasks import drawing, facts, lookup, perception, plain, reasoning
from dv2_jax.toy.tasks.facts import Split

SKILLS = ("perception", "reasoning", "search", "integration", "plain")


class TaskSet(Sequence[Question]):
    """Generates questions on demand: item i depends only on (split, seed, i); skills alternate."""

    def __init__(self, split: Split, size: int, seed: int, skills: Sequence[str] = SKILLS):
        if unknown := sorted(set(skills) - set(SKILLS)):
            raise ValueError(f"unknown skills {unknown}; there are {', '.join(SKILLS)}")
        if split not in ("train", "eval"):
            raise ValueError(f"split is 'train' or 'eval', not {split!r}")
        self.split = split
        self.size = size
        self.seed = seed
        self.skills = tuple(skills)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        index = int(index)
        if not -self.size <= index < self.size:
            raise IndexError(index)
        index %= self.size
        skill = self.skills[index % len(self.skills)]
        number = index // len(self.skills)  # alternates the kinds within a skill
        rng = np.random.default_rng([self.seed, 0 if self.split == "train" else 1, index])
        name = f"{self.split}-{self.seed}-{index:05d}"
        if skill == "reasoning":
            kind = reasoning.KINDS[number % len(reasoning.KINDS)]
            return reasoning.make_question(kind, rng, self.split, name)
        makers = {
            "perception": perception.KINDS,
            "search": (lookup.search_question,),
            "integration": (lookup.image_lookup_question, lookup.digit_lookup_question),
            "plain": plain.KINDS,
        }[skill]
        return makers[number % len(makers)](rng, self.split, name)


def make_questions(split: Split, n: int, seed: int = 0, skills: Sequence[str] = SKILLS) -> TaskSet:
    """Returns `n` questions of a split, generated lazily."""
    return TaskSet(split, n, seed, skills)


def write_corpus(folder: str | Path) -> tuple[Path, Path]:
    """Writes the corpora of the search tools and returns their files: (text JSONL, captioned-image JSONL).

    Files that already exist are reused.
    """
    folder = Path(folder)
    text, table = folder / "facts.jsonl", folder / "pictures.jsonl"
    if text.exists() and table.exists():
        return text, table
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (entity, title) in enumerate(lookup.image_index_entries()):
        path = folder / "pictures" / f"{number:04d}.jpg"
        path.write_bytes(drawing.encode(drawing.entity_image(entity, facts.split_of(entity))))
        rows.append({"image": str(path.resolve()), "title": title, "url": f"pic:{number}"})
    for path, lines in ((text, facts.documents()), (table, rows)):
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in lines))
    return text, table
