"""The overlap of boxes that TreeBench reports in addition to accuracy."""

from __future__ import annotations

import re
from collections.abc import Sequence

Box = Sequence[float]  # left, top, right, bottom
_THOUGHT = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_BOX = re.compile(r"<box>(.*?)</box>", re.DOTALL)
_COORDINATES = re.compile(r"\[(\d+),(\d+),(\d+),(\d+)\]")


def named_boxes(text: str) -> list[tuple[int, ...]]:
    """Returns the boxes `<box>[left,top,right,bottom]</box>` of a reply that have an area; blanks are not understood."""
    matches = (_COORDINATES.match(content.strip()) for content in _BOX.findall(text))
    boxes = [tuple(map(int, match.groups())) for match in matches if match]
    return [box for box in boxes if box[0] < box[2] and box[1] < box[3]]


def mean_overlap(text: str, targets: Sequence[Box]) -> float:
    """Returns the mean over targets of the greatest intersection over union with a box of the reply's first thought.

    Without a `<think>` all of the reply counts. 0 without boxes; 1 if there are boxes and no targets.
    """
    thought = _THOUGHT.search(text)
    boxes = named_boxes(thought[1] if thought else text)
    if not boxes:
        return 0.0
    if not targets:
        return 1.0
    return sum(max(intersection_over_union(target, box) for box in boxes) for target in targets) / len(targets)


def intersection_over_union(first: Box, second: Box) -> float:
    """Returns the area that two boxes share over the area that they cover."""
    width = max(0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0, min(first[3], second[3]) - max(first[1], second[1]))
    shared = width * height
    covered = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)) - shared
    return shared / covered if covered > 0 else 0.0
