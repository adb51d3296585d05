"""Record and replay: answers of live providers in one SQLite file, which can be shared and then needs no network.

What is kept is the answer as the service gives it (thumbnails included) under provider, locale and query; no key, no
header, no address. The same recording answers the same query alike for ever. Queries are compared with white space and
Unicode forms evened out, pictures by their bytes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sqlite3
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tools_service.search.provider import ImageProvider, Item, SearchError, TextProvider

Mode = Literal["record", "replay", "refresh"]
MODES: tuple[Mode, ...] = ("record", "replay", "refresh")

_FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    provider TEXT NOT NULL, variant TEXT NOT NULL, query TEXT NOT NULL, k INTEGER NOT NULL,
    items TEXT NOT NULL, recorded_at REAL NOT NULL, PRIMARY KEY (provider, variant, query)
) WITHOUT ROWID;
"""
_COLUMNS = ("provider", "variant", "query", "k", "items", "recorded_at")


class NotRecorded(SearchError):
    """A replayed provider was asked something that its recording does not hold."""


@dataclass(frozen=True)
class Answer:
    """One recorded answer. ``query`` is the text, or the SHA-256 of a picture; ``variant`` what else decides it."""

    provider: str
    variant: str
    query: str
    k: int  # results that were asked for
    items: tuple[Item, ...]
    recorded_at: float  # seconds since 1970

    def row(self) -> tuple:
        items = json.dumps(
            [_plain(item) for item in self.items], sort_keys=True, ensure_ascii=False, separators=(",", ":")
        )
        return self.provider, self.variant, self.query, self.k, items, self.recorded_at

    @classmethod
    def of(cls, row: tuple) -> Answer:
        provider, variant, query, k, items, recorded_at = row
        return cls(provider, variant, query, k, tuple(_item(plain) for plain in json.loads(items)), recorded_at)


class Recordings:
    """The file. Its methods block, and may be called from any thread."""

    def __init__(self, path: str | Path, *, read_only: bool = False):
        """Opens ``path``, or makes it unless ``read_only``. Raises ValueError for what is no such file."""
        self.path, self._lock = str(path), threading.Lock()
        if read_only and not Path(path).is_file():
            raise ValueError(f"{path} does not exist: record one first, with --search-cache-mode record")
        uri = f"{Path(path).resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        try:
            self._file = sqlite3.connect(uri, uri=True, check_same_thread=False, timeout=30.0, isolation_level=None)
            version = self._file.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, _FORMAT):
                raise ValueError(f"{path} is a recording of format {version}; this version reads format {_FORMAT}")
            if not read_only:
                self._file.executescript(_SCHEMA + f"PRAGMA user_version = {_FORMAT};")
            self._file.execute("SELECT count(*) FROM answers")
        except sqlite3.Error as error:
            raise ValueError(f"{path} cannot be used as a recording: {error}") from None

    def __len__(self) -> int:
        with self._lock:
            return self._file.execute("SELECT count(*) FROM answers").fetchone()[0]

    def get(self, provider: str, variant: str, query: str) -> Answer | None:
        asked = "SELECT provider, variant, query, k, items, recorded_at FROM answers WHERE provider=? AND variant=? AND query=?"
        with self._lock:
            row = self._file.execute(asked, (provider, variant, query)).fetchone()
        return Answer.of(row) if row else None

    def put(self, answer: Answer) -> None:
        """Keeps the answer, in place of an earlier one."""
        self._insert("INSERT OR REPLACE INTO answers", answer)

    def add(self, answer: Answer) -> Answer:
        """Keeps the answer unless there is one to as many results; returns the one that is kept now."""
        self._insert("INSERT INTO answers", answer, "ON CONFLICT DO UPDATE SET k=excluded.k, items=excluded.items, "
                     "recorded_at=excluded.recorded_at WHERE excluded.k > answers.k")  # fmt: skip
        return self.get(answer.provider, answer.variant, answer.query)

    def _insert(self, verb: str, answer: Answer, otherwise: str = "") -> None:
        with self._lock:
            self._file.execute(f"{verb} VALUES ({','.join('?' * len(_COLUMNS))}) {otherwise}", answer.row())

    def __iter__(self) -> Iterator[Answer]:
        """All answers, in an order that their contents decide."""
        with self._lock:
            rows = self._file.execute("SELECT * FROM answers ORDER BY provider, variant, query").fetchall()
        return map(Answer.of, rows)

    def close(self) -> None:
        with self._lock:
            self._file.close()


class Recorded:
    """A text or image provider whose answers are kept; without one, what is kept is all it knows."""

    def __init__(
        self, name: str, provider: TextProvider | ImageProvider | None, recordings: Recordings, mode: Mode, variant: str = "",
    ):  # fmt: skip
        """``provider`` is None exactly when ``mode`` is "replay"."""
        if (provider is None) != (mode == "replay"):
            raise ValueError(f"mode {mode} {'needs a' if provider is None else 'asks no'} live provider")
        self.name = name
        self.counters: Counter[str] = Counter()
        self._provider, self._recordings, self._mode, self._variant = provider, recordings, mode, variant
        self._asking: dict[str, tuple[int, asyncio.Task]] = {}

    async def search(self, query: str | bytes, k: int) -> list[Item]:
        return (await self.recall(query, k))[0]

    async def recall(self, query: str | bytes, k: int) -> tuple[list[Item], bool]:
        """As ``search``, and whether the answer was replayed."""
        key = query_key(query)
        if self._mode != "refresh":
            kept = await asyncio.to_thread(self._recordings.get, self.name, self._variant, key)
            # An answer to fewer results than now wanted is one only where there were no more.
            if kept is not None and (kept.k >= k or len(kept.items) < kept.k or self._mode == "replay"):
                self.counters["replayed"] += 1
                return list(kept.items[:k]), True
        if self._provider is None:
            self.counters["not recorded"] += 1
            raise NotRecorded(f"{self.name} only replays, and this was never recorded")
        return (await self._ask_once(key, query, k))[:k], False

    async def _ask_once(self, key: str, query: str | bytes, k: int) -> list[Item]:
        """Many ask the same at once (the samples of a group); the provider is asked once."""
        under_way = self._asking.get(key)
        if under_way is not None and under_way[0] >= k:
            self.counters["shared"] += 1
            task = under_way[1]
        else:
            task = asyncio.create_task(self._ask(key, query, k))
            self._asking[key] = k, task
            task.add_done_callback(lambda done: self._finished(key, done))
        return await asyncio.shield(task)

    async def _ask(self, key: str, query: str | bytes, k: int) -> list[Item]:
        items = await self._provider.search(query, k)
        answer = Answer(self.name, self._variant, key, k, tuple(items), time.time())
        try:
            if self._mode == "refresh":
                await asyncio.to_thread(self._recordings.put, answer)
            else:
                # Where another service was quicker, its answer is also ours: what is given is what will be replayed.
                answer = await asyncio.to_thread(self._recordings.add, answer)
        except sqlite3.Error as error:
            raise SearchError(f"the answer cannot be recorded: {error}") from None
        self.counters["recorded"] += 1
        return list(answer.items)

    def _finished(self, key: str, task: asyncio.Task) -> None:
        if self._asking.get(key, (0, None))[1] is task:
            del self._asking[key]
        if not task.cancelled():
            task.exception()  # seen, also when everybody who asked has gone


def query_key(query: str | bytes) -> str:
    """What a query is kept under: the text, evened out, or ``sha256:`` of the picture."""
    if isinstance(query, bytes):
        return f"sha256:{hashlib.sha256(query).hexdigest()}"
    return " ".join(unicodedata.normalize("NFC", query).split())


def _plain(item: Item) -> dict:
    fields = {name: value for name, value in vars(item).items() if value}
    return fields | ({"thumbnail": base64.b64encode(item.thumbnail).decode()} if item.thumbnail else {})


def _item(plain: dict) -> Item:
    return Item(**plain | ({"thumbnail": base64.b64decode(plain["thumbnail"])} if "thumbnail" in plain else {}))
