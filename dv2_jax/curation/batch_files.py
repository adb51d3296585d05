"""Batch files of providers: requests of single-shot stages as JSONL, and their results as stored replies.

OpenAI, Azure and others process such files within a day at half the price. Limits per file are theirs: 50,000 requests and
200 MB. A request's `custom_id` is its digest, under which its reply is stored; the stage then finds it and sends nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dv2_jax.config import ConfigError, RunFailure
from dv2_jax.curation.stage import SingleRequest
from dv2_jax.endpoint import ChatReply, ReplyJournal, request_digest
from dv2_jax.endpoint.chat_reply import encode_body
from dv2_jax.files import PARTIAL

MAX_REQUESTS = 50_000
MAX_BYTES = 200_000_000
URL = "/v1/chat/completions"


@dataclass(frozen=True)
class BatchResult:
    """Counts of a result file: stored replies, replies that were stored before, and failures by their reason."""

    stored: int
    known: int
    failures: Counter[str]


def write_batches(
    requests: Iterable[SingleRequest],
    folder: Path,
    stage: str,
    journal: ReplyJournal,
    *,
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
) -> list[tuple[Path, int]]:
    """Writes the requests without a stored reply as `STAGE-000.jsonl`, …; returns the files with their request counts.

    An interrupted call leaves no file with a final name behind; files of an earlier call are replaced.

    Raises:
        RunFailure: one request is larger than a file may be, or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"{stage}-*.jsonl*"):
        stale.unlink()
    written: list[tuple[Path, int]] = []
    count = size = 0
    file = None
    seen: set[str] = set()
    try:
        for request in requests:
            digest = request_digest(request.model, request.messages, request.parameters, request.key)
            if digest in seen or digest in journal:
                continue
            seen.add(digest)
            line = _line(request, digest)
            if len(line) > max_bytes:
                raise RunFailure(
                    f"--batch-write: a request of {len(line):,} bytes exceeds {max_bytes:,}; lower image sizes"
                )
            if file is None or count == max_requests or size + len(line) > max_bytes:
                if file is not None:
                    file.close()
                    written.append((path, count))
                path, count, size = folder / f"{stage}-{len(written):03d}.jsonl", 0, 0
                file = open(path.with_name(path.name + PARTIAL), "wb")
            file.write(line)
            count, size = count + 1, size + len(line)
    except OSError as error:
        raise RunFailure(f"{folder}: {error.strerror}; free space there and run the same command again") from error
    finally:
        if file is not None:
            file.close()
    if file is not None:
        written.append((path, count))
    for path, _ in written:
        path.with_name(path.name + PARTIAL).rename(path)
    return written


def _line(request: SingleRequest, digest: str) -> bytes:
    body = {"model": request.model, "messages": request.messages, **request.parameters}
    return encode_body({"custom_id": digest, "method": "POST", "url": URL, "body": body}) + b"\n"


def read_results(path: Path, journal: ReplyJournal) -> BatchResult:
    """Stores the replies of a result file; a request that failed has none, and is written again or sent by the stage.

    Raises:
        ConfigError: the file is no result file of a batch.
    """
    stored = known = 0
    failures: Counter[str] = Counter()
    for number, line in _results(path):
        digest, response = str(line["custom_id"]), line.get("response")
        if line.get("error") or not isinstance(response, dict) or response.get("status_code", 200) != 200:
            failures[_reason(line)] += 1
            continue
        if digest in journal:
            known += 1
            continue
        try:
            reply = ChatReply.from_body(response["body"])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            failures[f"line {number}: the body is no chat reply ({error})"] += 1
            continue
        journal.add(replace(reply, digest=digest))
        stored += 1
    return BatchResult(stored, known, failures)


def _results(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with open(path, "rb") as lines:
            for number, data in enumerate(lines, start=1):
                if not data.strip():
                    continue
                try:
                    line = json.loads(data)
                except ValueError:
                    line = None
                if not isinstance(line, dict) or "custom_id" not in line or not {"response", "error"} & line.keys():
                    raise ConfigError(
                        f"--batch-read: {path} line {number} is no result of a batch: it has no custom_id with a response"
                        " or an error"
                    )
                yield number, line
    except OSError as error:
        raise ConfigError(f"--batch-read: {path}: {error.strerror}") from None


def _reason(line: dict[str, Any]) -> str:
    error = line.get("error")
    if isinstance(error, dict):
        return str(error.get("message") or error)
    response = line.get("response") or {}
    return f"status {response.get('status_code')}" if response else "no response"
