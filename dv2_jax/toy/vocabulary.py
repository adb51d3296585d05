"""Trains the tiny model's vocabulary: a small byte-level BPE learned from the default tasks' training split.

python -m dv2_jax.toy.vocabulary --output dv2_jax/toy/assets/tokenizer.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import numpy as np

from dv2_jax.agent import prompts
from dv2_jax.data.question import Question
from dv2_jax.toy.scripted import demonstrate
from dv2_jax.toy.styles import LOOSE, StyleMix, TrajectoryStyle
from dv2_jax.toy.tasks import SKILLS, drawing, facts, make_questions, perception

VOCABULARY = 1024 + 64  # a multiple of 64


def texts(seed: int = 0, questions: int = 1500) -> Iterator[str]:
    """Yields prompts, questions, first turns and facts of the training split, about as frequent as in training."""
    rng = np.random.default_rng(seed)
    known = facts.facts_of("train")
    rows = [
        make_questions("train", questions, seed)[i]
        for i in range(questions)
        if SKILLS[i % 5] in ("reasoning", "search")
    ]
    rows += [_zoom_question(rng) for _ in range(len(rows))]
    for question in rows:
        yield prompts.BRIEF
        yield f"system\nuser\n{question.text}\nassistant\n"
        yield next(demonstrate(question, TrajectoryStyle.sample(StyleMix(widths=LOOSE), rng), rng))
        fact = known[int(rng.integers(len(known)))]
        yield f"1. [{fact.title}](kb:{rng.integers(9999)})\n\n{fact.sentence}"
        yield f"A Google search for '{fact.attribute} of {fact.entity}' found 3 results:\n\n## Web Results\n"
        yield "Code execution result:\nstdout:\n```\n\n```\n\nstderr:\n```\n\n```\n\nImages:\n"
        yield f"</think>\n<answer>{fact.value}</answer>"
        yield "A Google image search for the image found 3 results:\n\n## Web Results\n1. [Postcard from] \n2. [Display of] \n"
        yield '<think>\n{"name": "image_search"}\n<tool_response>\n</tool_response>'
    for row in facts.documents():
        if facts.split_of(row["title"].split(" of ")[-1]) == "train":
            yield row["text"]


def _zoom_question(rng: np.random.Generator) -> Question:
    """Returns a perception question without its image, which the first turn does not need."""
    x, y = int(rng.integers(200, 950)), int(rng.integers(200, 700))
    if rng.random() < 0.5:
        text, meta = str(rng.choice(perception.POINT_PHRASES)).format(x=x, y=y), {"kind": "point", "x": x, "y": y}
    else:
        color = str(rng.choice(list(drawing.COLORS)))
        text = str(rng.choice(perception.COLOR_PHRASES)).format(color=color)
        meta = {"kind": "colour", "colour": color}
    return Question("vocabulary", "perception", "perception", text, (), "", meta=meta)


def main() -> None:
    from dv2_jax.data.tokenizer import train_bpe

    parser = argparse.ArgumentParser(description="Learn the tiny model's vocabulary from the default tasks.")
    parser.add_argument("--output", required=True, help="tokenizer.json to write")
    parser.add_argument("--size", type=int, default=VOCABULARY, help="tokens, the added ones included")
    options = parser.parse_args()
    tokenizer = train_bpe(texts(), options.size, options.output)
    print(json.dumps({"output": options.output, "vocab_size": tokenizer.vocab_size}))


if __name__ == "__main__":
    main()
