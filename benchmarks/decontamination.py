"""Precision and recall of the overlap stage on planted duplicates of real images and questions.

    python -m benchmarks.decontamination [--json FILE]

Benchmark questions about images of scikit-image and scikit-learn, cut into tiles, stand for a benchmark. Each row of a set
repeats one of them in one way (equal, paraphrased, re-encoded, resized, cropped), or none: other tiles, and the same words
about another image. Recall is given per way, for the decision to drop and with pairs that are marked for review.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dv2_jax.curation.overlap import BenchmarkOverlapIndex
from dv2_jax.data.question import Question

TILE = 256
SUBJECTS = ("animal", "building", "vehicle", "person", "flower", "sign", "tool", "window", "tree", "shadow")
QUESTIONS = (
    "How many pieces of the {0} can be seen next to the {1} in the upper half of this image, counting partly hidden ones?",
    "What is the color of the largest {0} that stands directly in front of the {1}, as far as the image shows it?",
    "Which of the two is closer to the left edge of the image, the {0} or the {1} that casts a shadow on the ground?",
    "Is the {0} in the middle of the image taller than the {1} behind it, and by about how much does it differ?",
)
# The same questions in other words, as a person would write them.
PARAPHRASES = (
    "Counting partly hidden ones, how many pieces of the {0} can be seen next to the {1} in this image's upper half?",
    "As far as the image shows it, what color is the largest {0} that stands directly in front of the {1}?",
    "Which is closer to the left edge of the image: the {0}, or the {1} that casts a shadow on the ground?",
    "Is the {0} in the image's middle taller than the {1} behind it, and by how much, about, does it differ?",
)


def tiles() -> list[list[Image.Image]]:
    """Returns the tiles of each image that comes with scikit-image and scikit-learn, without flat ones."""
    import skimage.data
    import sklearn.datasets

    names = ("astronaut", "camera", "coffee", "cat", "rocket", "brick", "grass", "gravel", "immunohistochemistry", "page",
             "coins", "moon", "clock", "text", "retina", "colorwheel", "hubble_deep_field", "chelsea")  # fmt: skip
    arrays = []
    for name in names:
        try:
            arrays.append(np.asarray(getattr(skimage.data, name)()))
        except (AttributeError, OSError, ModuleNotFoundError):
            continue  # not in this installation, which would download it
    arrays += list(sklearn.datasets.load_sample_images().images)
    images = []
    for array in arrays:
        image = Image.fromarray(array).convert("RGB")
        size = min(TILE, image.width, image.height)
        found = []
        for top in range(0, image.height - size + 1, size // 2):
            for left in range(0, image.width - size + 1, size // 2):
                tile = image.crop((left, top, left + size, top + size)).resize((TILE, TILE))
                if np.asarray(tile.convert("L")).std() > 20:
                    found.append(tile)
        if found:
            images.append(found)
    return images


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Encodes an image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def cropped(image: Image.Image, share: float, rng: random.Random) -> Image.Image:
    """Returns a random part whose sides are `share` of the image's."""
    size = int(image.width * share)
    left, top = rng.randrange(image.width - size + 1), rng.randrange(image.height - size + 1)
    return image.crop((left, top, left + size, top + size))


def measure(seed: int = 0) -> dict[str, Any]:
    """Returns recall per kind of duplicate, false positives per kind of other row, and precision."""
    rng = random.Random(seed)
    images = tiles()
    # Tiles of one image overlap: those of every second image are the benchmark's, and the others are unrelated to them.
    originals = [tile for image in images[::2] for tile in image]
    plain = [tile for image in images[1::2] for tile in image]
    plain = plain[:: max(1, len(plain) // 60)]
    index = BenchmarkOverlapIndex()
    alone = BenchmarkOverlapIndex()  # of the same questions without images
    texts = []
    for number, tile in enumerate(originals):
        pair = rng.sample(SUBJECTS, 2)
        texts.append((number % len(QUESTIONS), pair))
        words = QUESTIONS[number % len(QUESTIONS)].format(*pair)
        index.add(f"bench:{number}", _question(f"b{number}", words, tile))
        alone.add(f"bench:{number}", Question(f"b{number}", "reason", "reason", words, (), "x"))

    def own(number: int) -> str:
        which, pair = texts[number]
        return QUESTIONS[which].format(*pair)

    def paraphrase(number: int) -> str:
        which, pair = texts[number]
        return PARAPHRASES[which].format(*pair)

    another = "What does the person who took this see first?"
    ways: dict[str, Callable[[int, Image.Image], Question]] = {
        "equal": lambda n, tile: _question("r", own(n), tile),
        "paraphrased, same image": lambda n, tile: _question("r", paraphrase(n), tile),
        "JPEG quality 40, same words": lambda n, tile: _bytes("r", own(n), encode(tile, "JPEG", quality=40)),
        "JPEG quality 40, other words": lambda n, tile: _bytes("r", another, encode(tile, "JPEG", quality=40)),
        "WebP quality 30, other words": lambda n, tile: _bytes("r", another, encode(tile, "WEBP", quality=30)),
        "resized to 50 %, other words": lambda n, tile: _question("r", another, tile.resize((TILE // 2, TILE // 2))),
        "resized to 170 %, other words": lambda n, tile: _question("r", another, tile.resize((435, 435))),
        "cropped to 80 %, other words": lambda n, tile: _question("r", another, cropped(tile, 0.8, rng)),
        "cropped to 50 %, other words": lambda n, tile: _question("r", another, cropped(tile, 0.5, rng)),
        "paraphrased, cropped to 60 %": lambda n, tile: _question("r", paraphrase(n), cropped(tile, 0.6, rng)),
    }
    rows, dropped_right, dropped_wrong = {}, 0, 0
    chosen = range(0, len(originals), max(1, len(originals) // 60))
    for name, make in ways.items():
        drop = review = right = 0
        for number in chosen:
            found = index.overlaps(make(number, originals[number]))
            drop += any(overlap.drop for overlap in found)
            review += bool(found)
            right += any(overlap.drop and overlap.other == f"bench:{number}" for overlap in found)
        rows[name] = {"rows": len(chosen), "dropped": drop, "dropped or to review": review, "names the original": right}
        dropped_right += drop
    clean: dict[str, Callable[[int], Question]] = {
        "other image, other words": lambda n: _question("r", another, plain[n % len(plain)]),
        "other image, same words": lambda n: _question("r", own(n % len(originals)), plain[n % len(plain)]),
    }
    for name, negative in clean.items():
        drop = review = 0
        for number in range(len(plain)):
            found = index.overlaps(negative(number))
            drop += any(overlap.drop for overlap in found)
            review += bool(found)
        rows[name] = {"rows": len(plain), "dropped": drop, "dropped or to review": review}
        dropped_wrong += drop
    for name, text in (("text alone, equal", own), ("text alone, paraphrased", paraphrase)):
        drop = sum(
            any(overlap.drop for overlap in alone.overlaps(Question("r", "reason", "reason", text(number), (), "x")))
            for number in chosen
        )
        rows[name] = {"rows": len(chosen), "dropped": drop}
    planted = sum(row["rows"] for name, row in rows.items() if name in ways)
    return {
        "benchmark questions": len(originals),
        "kinds": rows,
        "recall": round(dropped_right / planted, 4),
        "precision": round(dropped_right / max(1, dropped_right + dropped_wrong), 4),
    }


def _question(id_: str, text: str, image: Image.Image) -> Question:
    return _bytes(id_, text, encode(image))


def _bytes(id_: str, text: str, image: bytes) -> Question:
    return Question(id_, "perception", "perception", text, (image,), "x")


def main() -> None:
    """Prints the measurement."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decontamination", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    result = measure(arguments.seed)
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
