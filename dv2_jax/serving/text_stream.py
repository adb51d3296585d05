"""Decodes sampled token ids to text as they arrive, and finds the client's stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Sequence


class TextStream:
    """Text of a growing list of token ids, up to the first of the stop strings.

    `push` and `finish` return text that can be sent. Text that may be the beginning of a stop string, and bytes of an
    incomplete character, are held back until it is decided.

    Attributes:
        text: all text that has been returned.
        stopped_by: the stop string that ended the text, or None.
        tokens: number of token ids that the text comes from, the one that completed the stop string included.
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        stop: Sequence[str] = (),
        *,
        hidden: Collection[int] = (),
        keep_stop: bool = False,
    ):
        self.text = ""
        self.stopped_by: str | None = None
        self.tokens = 0
        self._token_bytes, self._hidden, self._keep_stop = token_bytes, frozenset(hidden), keep_stop
        self._stop = tuple(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token_ids: Sequence[int]) -> str:
        """Appends token ids and returns the text that is new; ids in `hidden` have no text."""
        for id_ in token_ids:
            if self.stopped_by is not None:
                break
            self.tokens += 1
            if id_ not in self._hidden:
                self._held += self._decoder.decode(self._token_bytes(id_))
                self._find_stop()
        return self._release(final=False)

    def finish(self) -> str:
        """Returns the rest of the text, once there are no further ids."""
        if self.stopped_by is None:
            self._held += self._decoder.decode(b"", final=True)
            self._find_stop()
        return self._release(final=True)

    def _find_stop(self) -> None:
        found = [(self._held.find(stop), stop) for stop in self._stop if stop in self._held]
        if found:
            start, self.stopped_by = min(found)
            self._held = self._held[: start + len(self.stopped_by) * self._keep_stop]

    def _release(self, *, final: bool) -> str:
        decided = final or self.stopped_by is not None
        keep = 0 if decided else max((_overlap(self._held, stop) for stop in self._stop), default=0)
        released, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        self.text += released
        return released


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of `text` that is a proper beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
