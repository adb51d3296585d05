"""Records answers of live providers in a cassette, one SQLite file, and replays them without key or network.

A cassette stores the answer as the service returns it (thumbnails included) by provider, locale and query, but no
key, header or provider address. Replayed answers never change. Text queries are compared after normalizing white
space and Unicode (NFC), images by the SHA-256 of their bytes.
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

from tools_service.search.provider import SearchError, SearchHit, SearchProvider

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
    """A provider in replay mode has no recorded answer for the query."""


@dataclass(frozen=True)
class CassetteEntry:
    """One recorded answer. `query` is a `query_key`; `variant` holds further settings that affect it (the locale)."""

    provider: str
    variant: str
    query: str
    k: int  # number of results requested
    items: tuple[SearchHit, ...]
    recorded_at: float  # seconds since 1970

    def to_row(self) -> tuple:
        """Returns the row of the SQLite table."""
        items = json.dumps(
            [_hit_to_json(item) for item in self.items], sort_keys=True, ensure_ascii=False, separators=(",", ":")
        )
        return self.provider, self.variant, self.query, self.k, items, self.recorded_at

    @classmethod
    def from_row(cls, row: tuple) -> CassetteEntry:
        """Reads a row of the SQLite table."""
        provider, variant, query, k, items, recorded_at = row
        return cls(
            provider, variant, query, k, tuple(_hit_from_json(plain) for plain in json.loads(items)), recorded_at
        )


class CassetteStore:
    """Stores recorded answers in a SQLite file. Methods block and are thread-safe."""

    def __init__(self, path: str | Path, *, read_only: bool = False):
        """Opens `path`; creates it unless `read_only`. Raises ValueError if it is not a cassette."""
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

    def get(self, provider: str, variant: str, query: str) -> CassetteEntry | None:
        statement = "SELECT provider, variant, query, k, items, recorded_at FROM answers WHERE provider=? AND variant=? AND query=?"
        with self._lock:
            row = self._file.execute(statement, (provider, variant, query)).fetchone()
        return CassetteEntry.from_row(row) if row else None

    def replace(self, answer: CassetteEntry) -> None:
        """Stores the answer, replacing an earlier one to the same query."""
        self._insert("INSERT OR REPLACE INTO answers", answer)

    def add_if_larger(self, answer: CassetteEntry) -> CassetteEntry:
        """Stores the answer unless one with at least as large a k exists; returns the stored one."""
        self._insert("INSERT INTO answers", answer, "ON CONFLICT DO UPDATE SET k=excluded.k, items=excluded.items, "
                     "recorded_at=excluded.recorded_at WHERE excluded.k > answers.k")  # fmt: skip
        return self.get(answer.provider, answer.variant, answer.query) or answer

    def _insert(self, verb: str, answer: CassetteEntry, otherwise: str = "") -> None:
        with self._lock:
            self._file.execute(f"{verb} VALUES ({','.join('?' * len(_COLUMNS))}) {otherwise}", answer.to_row())

    def __iter__(self) -> Iterator[CassetteEntry]:
        """Iterates over all answers, sorted by provider, variant and query."""
        with self._lock:
            rows = self._file.execute("SELECT * FROM answers ORDER BY provider, variant, query").fetchall()
        return map(CassetteEntry.from_row, rows)

    def close(self) -> None:
        with self._lock:
            self._file.close()


class CachedProvider:
    """Wraps a text or image provider and records its answers, or replays recorded answers without a provider."""

    def __init__(
        self, name: str, provider: SearchProvider | None, cassettes: CassetteStore, mode: Mode, variant: str = "",
    ):  # fmt: skip
        """Without a `provider` the mode must be "replay", with one it must not. Raises ValueError."""
        if (provider is None) != (mode == "replay"):
            raise ValueError(f"mode {mode} {'needs a' if provider is None else 'asks no'} live provider")
        self.name = name
        self.counters: Counter[str] = Counter()
        self._provider, self._store, self._mode, self._variant = provider, cassettes, mode, variant
        self._in_flight: dict[str, tuple[int, asyncio.Task]] = {}

    async def search(self, query: str | bytes, k: int) -> list[SearchHit]:
        return (await self.search_or_replay(query, k))[0]

    async def search_or_replay(self, query: str | bytes, k: int) -> tuple[list[SearchHit], bool]:
        """Returns the results as `search` does, and True if they were replayed."""
        key = query_key(query)
        if self._mode != "refresh":
            kept = await asyncio.to_thread(self._store.get, self.name, self._variant, key)
            # A cached answer for a smaller k is reused only if it was exhausted (fewer than its k results).
            if kept is not None and (kept.k >= k or len(kept.items) < kept.k or self._mode == "replay"):
                self.counters["replayed"] += 1
                return list(kept.items[:k]), True
        if self._provider is None:
            self.counters["not recorded"] += 1
            raise NotRecorded(f"{self.name} only replays, and this was never recorded")
        return (await self._search_once(key, query, k))[:k], False

    async def _search_once(self, key: str, query: str | bytes, k: int) -> list[SearchHit]:
        """Shares one provider call among concurrent identical searches, as the samples of a group make."""
        under_way = self._in_flight.get(key)
        if under_way is not None and under_way[0] >= k:
            self.counters["shared"] += 1
            task = under_way[1]
        else:
            task = asyncio.create_task(self._search_and_record(key, query, k))
            self._in_flight[key] = k, task
            task.add_done_callback(lambda done: self._forget_in_flight(key, done))
        return await asyncio.shield(task)

    async def _search_and_record(self, key: str, query: str | bytes, k: int) -> list[SearchHit]:
        assert self._provider is not None  # `search_or_replay` raised NotRecorded
        items = await self._provider.search(query, k)
        answer = CassetteEntry(self.name, self._variant, key, k, tuple(items), time.time())
        try:
            if self._mode == "refresh":
                await asyncio.to_thread(self._store.replace, answer)
            else:
                # Another service may have recorded an answer first: that one is returned, as it will be replayed.
                answer = await asyncio.to_thread(self._store.add_if_larger, answer)
        except sqlite3.Error as error:
            raise SearchError(f"the answer cannot be recorded: {error}") from None
        self.counters["recorded"] += 1
        return list(answer.items)

    def _forget_in_flight(self, key: str, task: asyncio.Task) -> None:
        if self._in_flight.get(key, (0, None))[1] is task:
            del self._in_flight[key]
        if not task.cancelled():
            task.exception()  # marks the exception as retrieved even if every waiter was cancelled


def query_key(query: str | bytes) -> str:
    """Returns the key of a query: its normalized text, or `sha256:` plus the digest of an image."""
    if isinstance(query, bytes):
        return f"sha256:{hashlib.sha256(query).hexdigest()}"
    return " ".join(unicodedata.normalize("NFC", query).split())


def _hit_to_json(item: SearchHit) -> dict:
    fields = {name: value for name, value in vars(item).items() if value}
    return fields | ({"thumbnail": base64.b64encode(item.thumbnail).decode()} if item.thumbnail else {})


def _hit_from_json(plain: dict) -> SearchHit:
    return SearchHit(**plain | ({"thumbnail": base64.b64decode(plain["thumbnail"])} if "thumbnail" in plain else {}))
