"""The default tasks: real things with exact answers, made from what installed packages ship.

Five skills (perception, reasoning, search, integration, plain), each question with a verifier. Training and
held-out questions share no entity, digit, photograph or random stream.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dv2_jax.data.question import Question
from dv2_jax.toy.tasks import drawing, facts, lookup, perception, plain, reasoning
from dv2_jax.toy.tasks.facts import Split

SKILLS = ("perception", "reasoning", "search", "integration", "plain")


class TaskSet(Sequence[Question]):
    """Questions made on demand: item i is a function of (split, seed, i) alone; skills take turns."""

    def __init__(self, split: Split, size: int, seed: int, skills: Sequence[str] = SKILLS):
        if unknown := sorted(set(skills) - set(SKILLS)):
            raise ValueError(f"unknown skills {unknown}; there are {', '.join(SKILLS)}")
        if split not in ("train", "eval"):
            raise ValueError(f"split is 'train' or 'eval', not {split!r}")
        self.split, self.size, self.seed, self.skills = split, size, seed, tuple(skills)

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
        turn = index // len(self.skills)  # alternates the kinds within a skill
        rng = np.random.default_rng([self.seed, 0 if self.split == "train" else 1, index])
        name = f"{self.split}-{self.seed}-{index:05d}"
        if skill == "reasoning":
            kind = reasoning.KINDS[turn % len(reasoning.KINDS)]
            return reasoning.make(kind, rng, self.split, name)
        makers = {
            "perception": perception.KINDS,
            "search": (lookup.search,),
            "integration": (lookup.recognise, lookup.read_and_look_up),
            "plain": plain.KINDS,
        }[skill]
        return makers[turn % len(makers)](rng, self.split, name)


def generate(split: Split, n: int, seed: int = 0, skills: Sequence[str] = SKILLS) -> TaskSet:
    """`n` questions of a split, lazily."""
    return TaskSet(split, n, seed, skills)


def write_corpus(folder: str | Path) -> tuple[Path, Path]:
    """Write what the search tools know: (text corpus JSONL, captioned-picture JSONL). Reuses a finished folder."""
    folder = Path(folder)
    text, table = folder / "facts.jsonl", folder / "pictures.jsonl"
    if text.exists() and table.exists():
        return text, table
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (entity, title) in enumerate(lookup.catalogue()):
        path = folder / "pictures" / f"{number:04d}.jpg"
        path.write_bytes(drawing.encode(drawing.tile(entity, facts.split_of(entity))))
        rows.append({"image": str(path.resolve()), "title": title, "url": f"pic:{number}"})
    for path, lines in ((text, facts.documents()), (table, rows)):
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in lines))
        partial.rename(path)
    return text, table
