"""Opens a database of one process on disk, for indexes whose memory must not grow with the number of rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

CACHE_KIB = 16_384  # pages that SQLite keeps in memory
_VARIABLES = 500  # of one statement; the lowest limit of supported SQLite versions is 999


def open_temporary_database(*statements: str) -> sqlite3.Connection:
    """Opens an empty database in a temporary file without a name and creates its tables.

    SQLite writes to the file, in `$SQLITE_TMPDIR`, `$TMPDIR` or `/var/tmp`, what exceeds its cache of `CACHE_KIB`. The file
    disappears with the process, also when that is killed. Nothing is ever committed, so that inserts cost no flush.

    Args:
        statements: `CREATE TABLE` statements.
    """
    connection = sqlite3.connect("", check_same_thread=False, isolation_level=None)
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    for statement in statements:
        connection.execute(statement)
    connection.execute("BEGIN")
    return connection


def text_key(text: str) -> bytes:
    """Returns a text as a key: keys are ordered as Python orders the texts, lone surrogates included."""
    return text.encode("utf-8", "surrogatepass")


def key_text(key: bytes) -> str:
    """Returns the text of a key."""
    return key.decode("utf-8", "surrogatepass")


def in_chunks(values: Iterable[int]) -> Iterator[tuple[str, Sequence[int]]]:
    """Yields (placeholders, values) for conditions `IN (…)`; a statement takes a limited number of values."""
    rest = list(values)
    for start in range(0, len(rest), _VARIABLES):
        part = rest[start : start + _VARIABLES]
        yield ", ".join("?" * len(part)), part
