"""Where supervised examples come from: stored conversations, stored trajectories, or the scripted solver's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from dv2_jax.agent.trajectory import Trajectory
from dv2_jax.data.chat_encoder import ChatEncoder, encode_messages
from dv2_jax.data.packing import Example
from dv2_jax.data.question import Question
from dv2_jax.data.rows import Conversation
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.telemetry.trajectories import PICTURE_FOLDER, TrajectoryWriter, loss_mask, read_trajectories

STAGE = "cold_start_data"
CHUNK = 64  # questions solved between two writes


@dataclass(frozen=True, eq=False)
class StoredTrajectory:
    """Ids, mask and the files of the pictures, in placeholder order."""

    token_ids: Int[np.ndarray, " T"]
    loss_mask: Bool[np.ndarray, " T"]
    pictures: tuple[Path, ...]


def from_trajectory(encoder: ChatEncoder) -> Callable[[StoredTrajectory], Example]:
    """Encode a stored trajectory: its ids as they are, its pictures preprocessed."""

    def encode(stored: StoredTrajectory) -> Example:
        pictures = tuple(encoder.picture(path.read_bytes()) for path in stored.pictures)
        return Example(stored.token_ids, stored.loss_mask.astype(np.float32), pictures)

    return encode


def from_conversation(
    encoder: ChatEncoder, row_tokens: int, left_out: Callable[[str, int], None]
) -> Callable[[Conversation], Example | None]:
    """Encode a stored conversation; one longer than a row is left out and reported as (id, tokens)."""

    def encode(conversation: Conversation) -> Example | None:
        example = encode_messages(conversation.messages, conversation.images, encoder, example_id=conversation.id)
        if len(example.token_ids) > row_tokens:
            left_out(example.id, len(example.token_ids))
            return None
        return Example(example.token_ids, example.loss_mask, tuple(example.pictures))

    return encode


def generate_trajectories(
    solve: Callable[[Sequence[Question], int], Iterable[Trajectory]],
    questions: Sequence[Question],
    directory: Path,
    tokenizer: Tokenizer,
    *,
    seed: int,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Store the trajectories of `solve(questions, seed)`, `CHUNK` questions at a time.

    A killed generation goes on with the chunk that it was at: what of it is written twice is read once.
    """
    marker = directory / "questions_done"
    done = int(marker.read_text()) if marker.exists() else 0
    advance(done)
    with TrajectoryWriter(directory, tokenizer) as writer:
        for start in range(done, len(questions), CHUNK):
            part = questions[start : start + CHUNK]
            writer.write(solve(part, seed + start), stage=STAGE)
            partial = marker.with_suffix(".partial")
            partial.write_text(str(start + len(part)))
            partial.rename(marker)
            advance(len(part))


def stored_trajectories(directory: Path) -> list[StoredTrajectory]:
    """All trajectories of `directory`, in the order in which they were first written."""
    return list(_read(directory))


def _read(directory: Path) -> Iterator[StoredTrajectory]:
    for record in read_trajectories(directory, STAGE):
        if record["dropped"]:
            continue
        # A turn's pictures are in the sequence only where its observation is.
        names = [*record["question"]["pictures"], *(n for turn in record["turns"] for n in turn["pictures"])]
        if len(names) != len(record["views"]):
            raise ValueError(
                f"{directory}: trajectory {record['id']!r} has {len(names)} pictures,"
                f" {len(record['views'])} of them in the sequence"
            )
        yield StoredTrajectory(
            np.asarray(record["token_ids"], np.int32),
            np.asarray(loss_mask(record), bool),
            tuple(directory / PICTURE_FOLDER / name for name in names),
        )
