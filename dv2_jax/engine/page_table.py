"""Pages of key/value memory: who holds which, and which already hold a given prefix.

Host bookkeeping alone. Invariant: the free pages suffice for what all admitted sequences may still ask, so an
admitted sequence always runs to its end and nothing deadlocks; the others wait.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

PrefixKey = bytes


class OutOfPages(RuntimeError):
    """A sequence asked for more than it was admitted with."""


@dataclass
class Page:
    """One page. ``filled`` counts its tokens whose keys and values have been dispatched for writing."""

    number: int
    holders: int = 0
    filled: int = 0
    owner: str = ""  # the sequence that fills it
    keys: list[PrefixKey] = field(default_factory=list)


class PageTable:
    """Allocation with reference counts, reservations and a registry of prefixes.

    A released page keeps its content and its keys until it is taken again, oldest first, so that late siblings
    still find the prompt of their group.
    """

    def __init__(self, pages: int, page_size: int):
        self.page_size = page_size
        self.pages = [Page(number) for number in range(pages)]
        self._free: OrderedDict[int, None] = OrderedDict((number, None) for number in range(pages))
        self._reserved: dict[str, int] = {}  # pages that an admitted sequence may still take
        self._registry: dict[PrefixKey, Page] = {}

    @property
    def free(self) -> int:
        """Pages that no sequence holds."""
        return len(self._free)

    @property
    def promised(self) -> int:
        """Pages that admitted sequences may still take."""
        return sum(self._reserved.values())

    def admit(
        self, sequence: str, worst_case: int, prefix: Sequence[PrefixKey], tail: PrefixKey | None = None
    ) -> tuple[list[Page], Page | None] | None:
        """Reserves ``worst_case`` pages for a sequence whose full pages of prompt have the keys ``prefix``.

        Returns the leading pages that some sequence has filled or is filling, and the page to copy the tail of
        the prompt from, if any; the sequence holds them all now. None when it has to wait.
        """
        shared: list[Page] = []
        for key in prefix:
            page = self._registry.get(key)
            if page is None:
                break
            shared.append(page)
        source = self._registry.get(tail) if tail is not None else None
        found = shared if source is None else [*shared, source]
        revived = sum(page.holders == 0 for page in found)
        if worst_case - len(shared) + revived > self.free - self.promised:
            return None
        for page in found:
            self.hold(page)
        self._reserved[sequence] = worst_case - len(shared)
        return shared, source

    def take(self, sequence: str) -> Page:
        """An empty page, out of the sequence's reservation."""
        if self._reserved.get(sequence, 0) < 1:
            raise OutOfPages(f"sequence {sequence!r} has taken all pages it was admitted with")
        self._reserved[sequence] -= 1
        number, _ = self._free.popitem(last=False)
        page = self.pages[number]
        self._forget(page)
        page.holders, page.filled, page.owner = 1, 0, sequence
        return page

    def hold(self, page: Page) -> None:
        """One more holder of a page."""
        if page.holders == 0:
            del self._free[page.number]
        page.holders += 1

    def drop(self, page: Page) -> None:
        """One holder less; the last one frees the page."""
        if page.holders < 1:
            raise RuntimeError(f"page {page.number} is dropped more often than held")
        page.holders -= 1
        if page.holders == 0:
            self._free[page.number] = None

    def release(self, sequence: str, pages: Sequence[Page]) -> None:
        """Ends an admitted sequence that holds ``pages``."""
        for page in pages:
            if page.owner == sequence:
                page.owner = ""
            self.drop(page)
        del self._reserved[sequence]

    def register(self, key: PrefixKey, page: Page) -> None:
        """Offers ``page`` to sequences that begin alike."""
        if key not in self._registry:
            self._registry[key] = page
            page.keys.append(key)

    def forget_all(self) -> None:
        """Nothing written so far may be shared any more: the weights have changed."""
        for page in list(self._registry.values()):
            self._forget(page)

    def _forget(self, page: Page) -> None:
        for key in page.keys:
            del self._registry[key]
        page.keys.clear()


def prefix_keys(
    token_ids: Sequence[int], pictures: Sequence[tuple[int, int, str]], page_size: int
) -> tuple[list[PrefixKey], PrefixKey | None]:
    """Names of the pages of a prefix: equal names, equal content.

    Args:
        token_ids: the prefix.
        pictures: (first placeholder, placeholders, digest) of each picture.
        page_size: tokens per page.

    Returns:
        The key of every full page, and that of the page that is left partly filled (None where none is).
    """
    keys: list[PrefixKey] = []
    chain = b""
    for start in range(0, len(token_ids), page_size):
        end = min(start + page_size, len(token_ids))
        content = hashlib.blake2b(chain, digest_size=16)
        content.update(np.asarray(token_ids[start:end], np.int32).tobytes())
        for first, count, digest in pictures:
            if first < end and start < first + count:
                content.update(f"{first - start}:{digest};".encode())
        chain = content.digest()
        keys.append(chain)
    partial = keys.pop() if len(token_ids) % page_size else None
    return keys, partial
