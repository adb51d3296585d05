"""A task of inspect-ai over the questions of `rows.json` in the current folder."""

import json
from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText
from inspect_ai.scorer import exact
from inspect_ai.solver import generate


def sample(index: int, row: dict) -> Sample:
    content = [*(ContentImage(image=image) for image in row["images"]), ContentText(text=row["text"])]
    return Sample(id=index + 1, input=[ChatMessageUser(content=content)], target=row["answer"])


@task
def embedded() -> Task:
    rows = json.loads(Path("rows.json").read_text())
    samples = [sample(index, row) for index, row in enumerate(rows)]
    return Task(dataset=MemoryDataset(samples), solver=generate(), scorer=exact())
