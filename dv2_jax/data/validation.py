"""Checks a data file once, before it is used: one pass that decodes every image, checks every field and counts tokens.

All faults are collected; none ends the pass. Rows are checked by a pool of threads (image decoding and tokenization
release the interpreter lock) in a window of bounded size, so that memory does not grow with the file.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dv2_jax.config import ImageConfig
from dv2_jax.data.chat_encoder import IMAGE_MARKER, ChatEncoder, ImageInput, encode_conversation
from dv2_jax.data.faults import TOO_LONG, DataReport, Fault, Issue, clip_text
from dv2_jax.data.images import PATCH, ImageError, load_image, smart_resize
from dv2_jax.data.question import Question
from dv2_jax.data.row_fields import Conversation, parse_conversation, parse_question
from dv2_jax.data.row_files import (
    CONVERSATION_ENDINGS,
    QUESTION_ENDINGS,
    FileFault,
    RawRow,
    iter_raw_rows,
    list_data_files,
)
from dv2_jax.data.rows import ParsedRow, make_fault, parse_row
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.data.validation_cache import ValidationCache, estimate_rows

_CHUNK_ROWS = 8  # rows per task of a thread
_MAX_THREADS = 32
_REPEATED_TEXTS = 64  # texts whose tokens are kept, because all rows share their system prompt
_FEW = 5  # bad images that are named per row

ReferenceCheck = Callable[[Question], Issue | None]


class SizeEncoder(ChatEncoder):
    """A chat encoder that decodes images for their size only, without computing patches."""

    def __init__(self, tokenizer: Tokenizer, image_config: ImageConfig, stop_strings: Sequence[str]):
        super().__init__(tokenizer, image_config, stop_strings)
        self._encoded_text = functools.lru_cache(_REPEATED_TEXTS)(super().encode_text)
        self.encode_image = self._encode_image  # without the cache, which would keep images

    def encode_text(self, text: str, *, trusted: bool) -> list[int]:
        return list(self._encoded_text(text, trusted=trusted))  # a copy, because callers append to it

    def _encode_image(self, encoded: bytes) -> ImageInput:
        image = load_image(encoded)
        bounds = {"min_pixels": self.image_config.min_pixels, "max_pixels": self.image_config.max_pixels}
        height, width = smart_resize(image.height, image.width, **bounds)
        return ImageInput("", np.empty((0, 0), np.float32), (1, height // PATCH, width // PATCH))


class RecordCheck(ABC):
    """The checks of one kind of row that need more than its fields: images, tokens, the verifier."""

    endings: tuple[str, ...]
    parse: Callable

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_config: ImageConfig,
        *,
        max_tokens: int,
        max_images: int,
        stop_strings: Sequence[str] = (),
    ):
        self.tokenizer, self.image_config = tokenizer, image_config
        self.max_tokens, self.max_images = max_tokens, max_images
        self.encoder = SizeEncoder(tokenizer, image_config, stop_strings)

    def settings(self) -> dict[str, Any]:
        """Returns everything but the file that the result depends on, for the key of the cache."""
        return {
            "check": type(self).__name__,
            "image": [self.image_config.min_pixels, self.image_config.max_pixels],
            "limits": [self.max_tokens, self.max_images],
            "tokenizer": self.tokenizer.to_json(),
            "stop_strings": self.encoder.stop_strings,
        }

    def issues(self, record: Question | Conversation) -> list[Issue]:
        """Returns the problems of a record whose fields are right."""
        found = self._image_issues(record.images)
        found += self._marker_issues(record)
        if not found:
            try:
                tokens = self.count_tokens(record)
            except Exception as error:  # of whatever kind: the encoder refuses this row, and the run must not end by it
                return [Issue("cannot be encoded", self.text_field, clip_text(str(error)), "correct the row's text")]
            if tokens > self.max_tokens:
                found.append(self.too_long(tokens))
        return found

    text_field: str  # the field that holds the text

    @abstractmethod
    def count_tokens(self, record: Any) -> int:
        """Encodes the record and counts its tokens."""

    @abstractmethod
    def too_long(self, tokens: int) -> Issue:
        """Describes a record of more than `max_tokens` tokens."""

    @abstractmethod
    def marked_messages(self, record: Any) -> Sequence[dict]:
        """Returns the messages whose markers stand for images."""

    def _image_issues(self, images: Sequence[bytes]) -> list[Issue]:
        found = []
        for index, image in enumerate(images):
            try:
                self.encoder.encode_image(image)
            except ImageError as error:
                field = f"images[{index}]"
                fix = "write the image file again, smaller if it is too large; or leave the row out"
                found.append(Issue("image", field, clip_text(str(error)), fix))
                if len(found) == _FEW:
                    break
        if len(images) > self.max_images:
            problem = f"{len(images)} images, more than agent.max_images = {self.max_images}"
            found.append(Issue("too many images", "images", problem, "raise agent.max_images, or leave the row out"))
        return found

    def _marker_issues(self, record: Question | Conversation) -> list[Issue]:
        markers = sum(message["content"].count(IMAGE_MARKER) for message in self.marked_messages(record))
        if markers == len(record.images):
            return []
        problem = f"{markers} {IMAGE_MARKER} markers for {len(record.images)} images"
        fix = f"write one {IMAGE_MARKER} where each image belongs, and list every image in `images`"
        return [Issue("markers", self.text_field, problem, fix)]


class QuestionCheck(RecordCheck):
    """Checks RL rows. `check_reference` says if the verifier can use the reference answer."""

    endings, parse, text_field = QUESTION_ENDINGS, staticmethod(parse_question), "prompt"

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_config: ImageConfig,
        *,
        max_total_tokens: int,
        max_images: int,
        check_reference: ReferenceCheck | None = None,
    ):
        # One token must be left for the policy.
        super().__init__(tokenizer, image_config, max_tokens=max_total_tokens - 1, max_images=max_images)
        self._check_reference = check_reference

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"reference": self._check_reference is not None}

    def issues(self, record: Question) -> list[Issue]:
        issue = self._check_reference(record) if self._check_reference is not None else None
        return ([issue] if issue else []) + super().issues(record)

    def count_tokens(self, record: Question) -> int:
        images = [self.encoder.encode_image(image) for image in record.images]
        return len(self.encoder.encode_prompt(record.messages, images).token_ids)

    def too_long(self, tokens: int) -> Issue:
        problem = f"{tokens:,} tokens leave no room for a turn in agent.max_total_tokens = {self.max_tokens + 1:,}"
        return Issue(TOO_LONG, "prompt", problem, "raise agent.max_total_tokens, or lower image.max_pixels")

    def marked_messages(self, record: Question) -> Sequence[dict]:
        return record.messages


class ConversationCheck(RecordCheck):
    """Checks SFT rows. An assistant turn that ends with one of `stop_strings` has no `<|im_end|>` of its own."""

    endings, parse, text_field = CONVERSATION_ENDINGS, staticmethod(parse_conversation), "messages"

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_config: ImageConfig,
        *,
        row_tokens: int,
        max_images: int,
        stop_strings: Sequence[str] = (),
    ):
        super().__init__(
            tokenizer, image_config, max_tokens=row_tokens, max_images=max_images, stop_strings=stop_strings
        )

    def count_tokens(self, record: Conversation) -> int:
        return len(encode_conversation(record.messages, record.images, self.encoder).token_ids)

    def too_long(self, tokens: int) -> Issue:
        problem = f"{tokens:,} tokens, more than sft.row_tokens = {self.max_tokens:,}"
        return Issue(TOO_LONG, "messages", problem, "raise sft.row_tokens, or lower image.max_pixels")

    def marked_messages(self, record: Conversation) -> Sequence[dict]:
        return [message for message in record.messages if message["role"] != "assistant"]


def check_source(
    path: str | Path,
    check: RecordCheck,
    *,
    limit: int | None = None,
    cache_folder: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    threads: int | None = None,
) -> DataReport:
    """Checks a data file, or every data file of a folder.

    Args:
        limit: number of rows to check; None: all.
        cache_folder: where the result is kept, for the same content and settings; None: no cache.
        on_progress: called with the number of rows checked and the estimated number of all.
        threads: number of threads; None: one per core, at most 32.

    Raises:
        FileNotFoundError: there is no such file.
        RowError: a file has another ending than those of the format.
    """
    started = time.monotonic()
    files = list_data_files(path, check.endings)
    cache = ValidationCache(cache_folder, path, files, check.settings() | {"limit": limit})
    report = cache.load()
    if report is None:
        estimate = min(sum(map(estimate_rows, files)), limit or 1 << 62)
        check_pass = _Pass(path, check, lambda done: on_progress(done, max(done, estimate)))
        check_pass.run(files, limit, threads or min(_MAX_THREADS, len(os.sched_getaffinity(0))))
        report = check_pass.report
        cache.store(report, check_pass.image_paths)
    report.seconds = time.monotonic() - started
    return report


class _Pass:
    """One pass over the files of a source."""

    def __init__(self, path: str | Path, check: RecordCheck, on_progress: Callable[[int], None]):
        self.check, self.on_progress = check, on_progress
        self.report = DataReport(str(path))
        self.image_paths: set[Path] = set()
        self._images = hashlib.sha256()
        self._first_row_of_id: dict[str, str] = {}

    def run(self, files: Sequence[Path], limit: int | None, threads: int) -> None:
        pending: deque[Future] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="data-check") as pool:
            for file, rows in self._chunks(files, limit):
                pending.append(pool.submit(_check_chunk, file, rows, self.check))
                if len(pending) > 2 * threads:
                    self._merge(*pending.popleft().result())
            for future in pending:
                self._merge(*future.result())
        if self.image_paths:
            self.report.images_sha256 = self._images.hexdigest()
        if not self.report.rows and not self.report.faults:
            fault = FileFault(
                files[0], "holds no rows", "write the data, or name another file", kind="empty file"
            ).fault
            self.report.faults.append(fault)

    def _chunks(self, files: Sequence[Path], limit: int | None) -> Iterator[tuple[Path, list[RawRow]]]:
        left = limit if limit is not None else 1 << 62
        for file in files:
            rows: list[RawRow] = []
            try:
                for raw in iter_raw_rows(file):
                    if not left:
                        break
                    left -= 1
                    rows.append(raw)
                    if len(rows) == _CHUNK_ROWS:
                        yield file, rows
                        rows = []
            except FileFault as error:
                self.report.faults.append(error.fault)
            if rows:
                yield file, rows

    def _merge(self, file: Path, results: Sequence[_CheckedRow]) -> None:
        report = self.report
        for raw, own_id, issues, image_paths, images in results:
            report.rows += 1
            report.faults += [make_fault(file, raw, own_id, issue) for issue in issues]
            self.image_paths.update(file.parent / name for name in image_paths)
            self._images.update(images)
            if own_id and (fault := self._repeated_id(file, raw, own_id)):
                report.faults.append(fault)
        self.on_progress(report.rows)

    def _repeated_id(self, file: Path, raw: RawRow, own_id: str) -> Fault | None:
        here = f"{file.name} row {raw.number}"
        first = self._first_row_of_id.setdefault(own_id, here)
        if first == here:
            return None
        issue = Issue("repeated id", "id", f"is that of {first} too", "give each row its own id, or remove `id`")
        return make_fault(file, raw, own_id, issue)


class _CheckedRow(NamedTuple):
    raw: RawRow  # without the parsed value, which may hold the row's images
    own_id: str
    issues: list[Issue]
    image_paths: tuple[str, ...]
    images: bytes  # digest of the images if the row names files


def _check_chunk(file: Path, rows: Sequence[RawRow], check: RecordCheck) -> tuple[Path, list[_CheckedRow]]:
    results = []
    for raw in rows:
        parsed = parse_row(raw, file, check.parse)
        issues = list(parsed.issues)
        if parsed.record is not None:
            issues = check.issues(parsed.record)
        kept = RawRow(raw.number, None, raw.line)
        results.append(_CheckedRow(kept, parsed.own_id, issues, parsed.image_paths, _digest_images(parsed)))
    return file, results


def _digest_images(parsed: ParsedRow) -> bytes:
    """Returns a digest of the images of a usable row that names files; images in the row are part of its own file."""
    if parsed.record is None or not parsed.image_paths:
        return b""
    return b"".join(hashlib.sha256(image).digest() for image in parsed.record.images)
