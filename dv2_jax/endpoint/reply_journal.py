"""Stores replies as they arrive, so that a request whose reply has arrived is never sent again."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from pathlib import Path

from dv2_jax.config import ConfigError, RunFailure
from dv2_jax.endpoint.chat_reply import ChatReply


class ReplyJournal:
    """Replies by the digest of their requests, in an append-only file with one JSON line per reply. Thread-safe.

    A line is written by one system call and is complete or ignored: a process killed while it writes leaves at most one
    incomplete line. Memory holds the digests and the places of the lines, not the replies.

    Raises:
        ConfigError: another process has the file open.
        RunFailure: the file cannot be read or written.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock = threading.Lock()
        self._places: dict[str, tuple[int, int]] = {}  # digest → offset and length of its line
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise RunFailure(f"{self.path}: cannot be opened ({error.strerror})") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise ConfigError(f"{self.path} is in use by another process: wait for it, or set run.name") from None
        except OSError:
            pass  # a file system without locks
        self._end = self._read_places()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, digest: str) -> bool:
        """Returns whether the request with that digest has a stored reply, without reading it."""
        return digest in self._places

    def get(self, digest: str) -> ChatReply | None:
        """Returns the stored reply to the request with that digest, or None."""
        with self._lock:
            place = self._places.get(digest)
            if place is None:
                return None
            line = os.pread(self._file, place[1], place[0])
        return ChatReply.from_dict(json.loads(line))

    def add(self, reply: ChatReply) -> None:
        """Appends a reply under its `digest`; of several with the same digest, the newest counts.

        Raises:
            RunFailure: the disk is full, or the file cannot be written. The file keeps its complete lines.
        """
        line = (json.dumps(reply.to_dict(), separators=(",", ":")) + "\n").encode()
        with self._lock:
            try:
                written = os.write(self._file, line)
                if written < len(line):
                    os.write(self._file, line[written:])  # raises the reason for which the first call wrote a part
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, self._end)
                raise RunFailure(
                    f"{self.path}: a reply cannot be stored ({error.strerror}); stored ones are kept, start the same"
                    " command again to continue"
                ) from None
            self._places[reply.digest] = self._end, len(line)
            self._end += len(line)

    def close(self) -> None:
        """Closes the file, which frees it for another process."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1  # the number may name another file from now on

    def _read_places(self) -> int:
        """Reads the digests of all complete lines; cuts an incomplete last line off. Returns the end of the file."""
        offset = 0
        with open(self.path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    os.ftruncate(self._file, offset)
                    break
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    self._places[str(json.loads(line)["digest"])] = offset, len(line)
                offset += len(line)
        return offset
