"""Writes the questions of the client checks: `python .ci/clients/make_rows.py FOLDER`.

    rows.jsonl        embedded questions in the released row format, for `evaluate`
    rows.json         the same questions as texts and data URLs, for clients
    VStarBench.tsv    multiple choice in VLMEvalKit's format; TinyMCQ.tsv is a copy, under a name that the kit does not download
    TreeBench.tsv     multiple choice with categories and boxes

Images are JPEG files that another encoding by Pillow leaves unchanged, because VLMEvalKit encodes every image again.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
from pathlib import Path

from PIL import Image

from dv2_jax.agent.prompts import build_messages
from dv2_jax.data.question import Question
from dv2_jax.toy.tasks import make_questions

MIN_EDGE = 112  # pixels; VLMEvalKit enlarges images with a side below 100
COUNT = 12
CHOICES = 6
# TreeBench's rule reads the first of the letters A-E in a reply, here the initial of the word.
OPTIONS = {"A": "Africa", "B": "Brno", "C": "Cf", "D": "Dakar", "E": "Europe"}


def stable_jpeg(data: bytes) -> bytes:
    """Returns a JPEG of at least `MIN_EDGE` pixels per side that encoding it again does not change."""
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    factor = max(1, -(-MIN_EDGE // min(image.size)))
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    encoded = b""
    for _ in range(100):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG")
        if buffer.getvalue() == encoded:
            return encoded
        encoded = buffer.getvalue()
        image = Image.open(io.BytesIO(encoded))
        image.load()
    raise RuntimeError("an image does not become stable under JPEG")


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def write_rows(questions: list[Question], folder: Path) -> None:
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for question in questions:
            names = []
            for index, image in enumerate(question.images):
                names.append(f"{question.id}-{index}.jpg")
                (folder / names[-1]).write_bytes(image)
            row = {
                "images": [{"image": name} for name in names],
                "data_source": question.data_source,
                "prompt": list(build_messages(question, "brief")),
                "reward_model": {"ground_truth": question.answer},
                "extra_info": {"question": question.text, "verifier": "text", "index": question.id},
            }
            file.write(json.dumps(row) + "\n")
    for_clients = [
        {
            "text": question.text,
            "images": [f"data:image/jpeg;base64,{encoded(image)}" for image in question.images],
            "answer": question.answer,
        }
        for question in questions
    ]
    (folder / "rows.json").write_text(json.dumps(for_clients))


def write_choices(questions: list[Question], image: bytes, folder: Path) -> None:
    """Writes questions whose answers are among `OPTIONS`; the tiny model replies with a word, which the kit matches."""
    rows = [
        {
            "index": index,
            "image": encoded(image),
            "question": question.text,
            **OPTIONS,
            "answer": next(letter for letter, text in OPTIONS.items() if text == question.answer),
            "category": ("direct_attributes", "relative_position")[index % 2],
        }
        for index, question in enumerate(questions)
    ]
    for name in ("VStarBench", "TinyMCQ"):
        write_tsv(folder / f"{name}.tsv", rows)
    trees = [
        row
        | {
            "category": ("Perception/Attributes", "Reasoning/Ordering")[row["index"] % 2],
            "multi-choice options": "".join(f"{letter}. {text}\n" for letter, text in OPTIONS.items()),
            "target_instances": "[[10, 10, 60, 60]]",
        }
        for row in rows
    ]
    write_tsv(folder / "TreeBench.tsv", trees)


def write_tsv(path: Path, rows: list[dict]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    made = make_questions("eval", 400, 0)
    questions = [
        Question(q.id, q.skill, q.data_source, q.text, tuple(map(stable_jpeg, q.images)), q.answer)
        for q in (made[index] for index in range(COUNT))
    ]
    write_rows(questions, folder)
    chosen = {q.text: q for q in (made[index] for index in range(len(made))) if q.answer in OPTIONS.values()}
    write_choices(list(chosen.values())[:CHOICES], questions[0].images[0], folder)


if __name__ == "__main__":
    main()
