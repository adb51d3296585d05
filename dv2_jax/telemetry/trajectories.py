"""Writes and reads trajectory records: rollouts as JSON lines, readable without this code.

A directory `trajectories/` holds one `<stage>.jsonl` per stage (`train`, `initial`, `final`, `evaluate` or a compared
policy; with a further benchmark `evaluate@NAME`), a line per trajectory, and the folder `IMAGE_FOLDER` with every image
once, named by the digest of its bytes. A line contains the complete trajectory: token ids, loss mask, behavior log-probs
and policy versions, and the decoded text.

Files are append-only, one complete line per write. A writer killed mid-line leaves an incomplete last line: the next
writer starts on a new line, and the reader skips incomplete lines with a warning that counts them.

The answers of an evaluation are stored before they are scored: their lines have a field `answer`, and `scores/<stage>.jsonl`
next to this directory has their rewards, with which the reader completes them. Host N of several writes to `host-N/`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dv2_jax.files import atomic_write

FORMAT = 1
IMAGE_MARK = "\ufffc"  # replaces one image (a run of image placeholder ids) in a segment's text
IMAGE_FOLDER = "pictures"
_IMAGE_PAD = "<|image_pad|>"


def image_file_name(data: bytes) -> str:
    """Returns the file name of an encoded image: a digest of its bytes plus the suffix of its format."""
    if data.startswith(b"\x89PNG"):
        suffix = ".png"
    elif data.startswith(b"\xff\xd8"):
        suffix = ".jpg"
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        suffix = ".webp"
    elif data.startswith(b"GIF8"):
        suffix = ".gif"
    else:
        suffix = ".img"
    return hashlib.sha256(data).hexdigest()[:24] + suffix


def segments(token_ids: Sequence[int], loss_mask: Sequence[int], tokenizer: Any) -> list[dict]:
    """Splits a trajectory where its loss mask changes: the prompt, then alternating model turns and observations.

    Each segment is `{"role", "start", "end", "text"}`; a model segment also has `"ends"`: for each of its tokens the
    offset in `text` at which its characters end. A token that completes no character (the first bytes of a multi-byte
    one) has the offset of its predecessor.
    """
    if len(token_ids) != len(loss_mask):
        raise ValueError(f"{len(token_ids)} token ids but {len(loss_mask)} mask entries")
    if not token_ids:  # sampled by an endpoint, which does not say them
        return []
    image_pad = tokenizer.id(_IMAGE_PAD)
    pieces: list[dict] = []
    start = 0
    while start < len(token_ids):
        end = start + 1
        while end < len(token_ids) and bool(loss_mask[end]) == bool(loss_mask[start]):
            end += 1
        text, ends = _decode(token_ids[start:end], tokenizer, image_pad)
        trained = bool(loss_mask[start])
        role = "model" if trained else ("observation" if pieces else "prompt")
        piece = {"role": role, "start": start, "end": end, "text": text}
        pieces.append(piece | {"ends": ends} if trained else piece)
        start = end
    return pieces


def _decode(ids: Sequence[int], tokenizer: Any, image_pad: int) -> tuple[str, list[int]]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text, ends, previous = "", [], None
    for token in ids:
        if token == image_pad:
            text += decoder.decode(b"", final=True)
            if previous != image_pad:
                text += IMAGE_MARK
            decoder.reset()
        else:
            text += decoder.decode(tokenizer.token_bytes(token))
        ends.append(len(text))
        previous = token
    text += decoder.decode(b"", final=True)
    if ends:
        ends[-1] = len(text)
    return text, ends


def loss_mask(record: dict) -> list[int]:
    """Returns the loss mask of a record, one 0 or 1 per token id."""
    mask = [0] * len(record["token_ids"])
    for piece in record["segments"]:
        if piece["role"] == "model":
            mask[piece["start"] : piece["end"]] = [1] * (piece["end"] - piece["start"])
    return mask


class TrajectoryWriter:
    """Appends trajectories to `directory` (created on first use); see the module's docstring for the layout.

    Only process 0 writes; the others pass `enabled=False`.
    """

    def __init__(self, directory: str | Path, tokenizer: Any, *, enabled: bool = True):
        self.directory = Path(directory)
        self.tokenizer = tokenizer
        self._enabled = enabled
        self._files: dict[str, Any] = {}
        self._known_images: set[str] = set()

    def write(
        self,
        trajectories: Iterable[Any],
        *,
        stage: str,
        step: int | None = None,
        advantages: Sequence[float] | None = None,
    ) -> None:
        """Appends `trajectories` to the file of `stage`; `advantages` has one number per trajectory.

        The lines are flushed, but not synced to disk, when this returns.

        Raises:
            ValueError: if the numbers of trajectories and advantages differ, or `stage` is not a valid file name.
        """
        batch = list(trajectories)
        if advantages is not None and len(advantages) != len(batch):
            raise ValueError(f"{len(batch)} trajectories but {len(advantages)} advantages")
        if not (batch and self._enabled):
            return
        file = self._open(stage)
        for row, trajectory in enumerate(batch):
            record = self.record(trajectory)
            record |= {"stage": stage, "step": step, "time": round(time.time(), 3)}
            if advantages is not None:
                record["advantage"] = float(advantages[row])
            file.write((json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n").encode())
        file.flush()

    def record(self, trajectory: Any) -> dict:
        """Converts a trajectory to JSON types and writes its images to the image folder."""
        question = trajectory.question
        sampled = [i for i, trained in enumerate(trajectory.loss_mask) if trained]
        inputs = [self._store_image(data) for data in question.images]
        turns = [
            {
                "kind": _name(turn.kind),
                "text": turn.text,
                "observation": turn.observation,
                "pictures": [self._store_image(data) for data in turn.images],
                "status": "" if turn.status is None else turn.status.value,
                "wall_ms": turn.wall_ms,
            }
            for turn in trajectory.turns
        ]
        return {
            "format": FORMAT,
            "id": trajectory.id,
            "question": {
                "id": question.id,
                "skill": question.skill,
                "data_source": question.data_source,
                "text": question.text,
                "answer": question.answer,
                "verifier": question.verifier,
                "pictures": inputs,
                **({"references": list(references)} if (references := question.meta.get("references")) else {}),
            },
            "token_ids": [int(token) for token in trajectory.token_ids],
            "segments": segments(trajectory.token_ids, trajectory.loss_mask, self.tokenizer),
            # 9 significant digits round-trip a float32 exactly
            "logprobs": [float(f"{float(trajectory.logprobs[i]):.9g}") for i in sampled],
            "versions": [int(trajectory.versions[i]) for i in sampled],
            "views": [{"digest": view.digest, "grid": [int(n) for n in view.grid]} for view in trajectory.images],
            "turns": turns,
            "finish": _name(trajectory.finish),
            "dropped": bool(trajectory.dropped),
            "reward": None if trajectory.reward is None else float(trajectory.reward),
            "reward_parts": dict(trajectory.reward_parts),
            "tool_calls": int(trajectory.tool_calls),
        }

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self, stage: str) -> Any:
        if stage not in self._files:
            if not re.fullmatch(r"\w[\w.@-]*", stage):
                raise ValueError(f"stage {stage!r}: use letters, digits and '._@-', it names a file")
            self.directory.mkdir(parents=True, exist_ok=True)
            path = self.directory / f"{stage}.jsonl"
            file = open(path, "ab")
            if file.tell() > 0:
                with open(path, "rb") as written:
                    written.seek(-1, os.SEEK_END)
                    if written.read(1) != b"\n":  # the last writer was killed mid-line
                        file.write(b"\n")
            self._files[stage] = file
        return self._files[stage]

    def _store_image(self, data: bytes) -> str:
        name = image_file_name(data)
        if name not in self._known_images:
            folder = self.directory / IMAGE_FOLDER
            path = folder / name
            if not path.exists():
                atomic_write(path, data)
            self._known_images.add(name)
        return name


def _name(value: Any) -> Any:
    """Returns the lower-case name of an enum member; any other value unchanged."""
    name = getattr(value, "name", None)
    return name.lower() if isinstance(name, str) else value


def stages(directory: str | Path) -> list[str]:
    """Returns the names of the stages that have records."""
    return sorted(path.stem for path in Path(directory).glob("*.jsonl"))


def read_trajectories(directory: str | Path, stage: str) -> Iterator[dict]:
    """Reads the records of one stage, in order of first appearance; of equal (step, id) the newest wins.

    A step is repeated if a run was killed between writing its trajectories and its checkpoint. Incomplete lines
    (one for each time a writer was killed mid-line) are skipped with a warning that counts them.
    """
    directory = Path(directory)
    further = sorted(directory.glob(f"host-*/{stage}.jsonl"))
    first = directory / f"{stage}.jsonl"
    rewards = _rewards(directory.parent / "scores", stage)
    for path in [*([first] if first.exists() or not further else []), *further]:
        for record in _newest_records(path):
            yield record | rewards.get(record["id"], {}) if "answer" in record else record


def _newest_records(path: Path) -> Iterator[dict]:
    newest: dict[tuple, int] = {}
    order: list[tuple] = []
    torn = offset = 0
    with open(path, "rb") as file:
        for line in file:
            record = _parse(line)
            if record is None:
                torn += 1
            else:
                key = (record.get("step"), record["id"])
                if key not in newest:
                    order.append(key)
                newest[key] = offset
            offset += len(line)
        if torn:
            warnings.warn(f"{path}: {torn} incomplete lines were skipped", stacklevel=3)
        for key in order:
            file.seek(newest[key])
            yield json.loads(file.readline())


def _rewards(folder: Path, stage: str) -> dict[str, dict]:
    """Returns the fields of each answer's record that its score decides, by the record's id."""
    found: dict[str, dict] = {}
    for path in [folder / f"{stage}.jsonl", *sorted(folder.glob(f"host-*/{stage}.jsonl"))]:
        if not path.exists():
            continue
        with open(path, "rb") as file:
            for line in file:
                try:
                    score = json.loads(line)
                    parts, sample = score["reward_parts"], score["sample"]
                    name = f"{score['question_id']}#{sample}" if sample else score["question_id"]
                except (ValueError, KeyError, TypeError):  # incomplete, or of another kind
                    continue
                if parts is not None:
                    found[name] = {"reward": score["reward"], "reward_parts": parts, "dropped": not parts}
    return found


def _parse(line: bytes) -> dict | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "id" in record else None
