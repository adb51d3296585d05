"""Allocation of KV-cache pages with reference counts, reservations and a prefix registry; host bookkeeping only.

Invariant: the free pages suffice for all reservations of admitted sequences. A sequence that has reserved pages for its maximum
length therefore never waits for a page; one that has reserved fewer may take pages beyond them that nobody has reserved.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

PrefixKey = bytes


class OutOfPages(RuntimeError):
    """Raised when a sequence allocates a page that it has not reserved, or that others have reserved."""


@dataclass
class Page:
    """One KV-cache page. `filled` counts its tokens whose keys and values have been dispatched for writing."""

    number: int
    ref_count: int = 0
    filled: int = 0
    owner: Hashable = ""  # id of the sequence that fills it
    keys: list[PrefixKey] = field(default_factory=list)


class PageTable:
    """Allocates pages, counts references and finds pages by prefix key.

    A free page keeps its content and its keys until it is reallocated, least recently freed first, so that samples
    of the same group that are admitted later still share its prompt.
    """

    def __init__(self, pages: int, page_size: int):
        self.page_size = page_size
        self.pages = [Page(number) for number in range(pages)]
        self._free: OrderedDict[int, None] = OrderedDict((number, None) for number in range(pages))
        self._reserved: dict[Hashable, int] = {}  # pages that an admitted sequence may still allocate
        self.reserved = 0  # the sum of these, which is needed for every page and row
        self._registry: dict[PrefixKey, Page] = {}

    @property
    def num_free(self) -> int:
        """Number of pages without a reference."""
        return len(self._free)

    def available(self, sequence: Hashable) -> int:
        """Returns the number of pages that a sequence can allocate: those it has reserved, and those that nobody has."""
        return self._reserved.get(sequence, 0) + max(0, self.num_free - self.reserved)

    def admit(
        self,
        sequence: Hashable,
        count: int,
        prefix: Sequence[PrefixKey],
        partial_key: PrefixKey | None = None,
        *,
        spare: int = 0,
    ) -> tuple[list[Page], Page | None] | None:
        """Reserves `count` pages for a sequence whose full pages of prompt have the keys `prefix`.

        Args:
            prefix: keys of the prompt's full pages.
            partial_key: key of the prompt's last, partial page, if any.
            spare: free pages without a reservation that must be left.

        Returns:
            The leading pages that some sequence has filled or is filling, and the page to copy the partial page from
            (None if there is none), all with their reference count increased; None if the sequence has to wait.
        """
        shared: list[Page] = []
        for key in prefix:
            page = self._registry.get(key)
            if page is None:
                break
            shared.append(page)
        source = self._registry.get(partial_key) if partial_key is not None else None
        found = shared if source is None else [*shared, source]
        reused = sum(page.ref_count == 0 for page in found)
        if count - len(shared) + reused + spare > self.num_free - self.reserved:
            return None
        for page in found:
            self.incref(page)
        self._reserved[sequence] = count - len(shared)
        self.reserved += count - len(shared)
        return shared, source

    def allocate(self, sequence: Hashable, *, beyond_reservation: bool = False) -> Page:
        """Allocates an empty page from the sequence's reservation, or one beyond it that nobody has reserved.

        Raises:
            OutOfPages: if the reservation is used up, and no other page may be taken.
        """
        if self._reserved.get(sequence, 0) > 0:
            self._reserved[sequence] -= 1
            self.reserved -= 1
        elif not beyond_reservation or not self.available(sequence):
            raise OutOfPages(f"sequence {sequence!r} has allocated all pages it reserved")
        number, _ = self._free.popitem(last=False)
        page = self.pages[number]
        self._unregister(page)
        page.ref_count, page.filled, page.owner = 1, 0, sequence
        return page

    def incref(self, page: Page) -> None:
        """Increments the reference count of a page."""
        if page.ref_count == 0:
            del self._free[page.number]
        page.ref_count += 1

    def decref(self, page: Page) -> None:
        """Decrements the reference count of a page; at 0 the page is free."""
        if page.ref_count < 1:
            raise RuntimeError(f"page {page.number} was freed more often than referenced")
        page.ref_count -= 1
        if page.ref_count == 0:
            self._free[page.number] = None

    def free_sequence(self, sequence: Hashable, pages: Sequence[Page]) -> None:
        """Drops the references of an admitted sequence to `pages` and its reservation."""
        for page in pages:
            if page.owner == sequence:
                page.owner = ""
            self.decref(page)
        self.reserved -= self._reserved.pop(sequence)

    def register_prefix(self, key: PrefixKey, page: Page) -> None:
        """Registers `page` under its prefix key, so that sequences with the same prefix share it."""
        if key not in self._registry:
            self._registry[key] = page
            page.keys.append(key)

    def invalidate(self) -> None:
        """Empties the prefix registry; called when the weights change."""
        for page in list(self._registry.values()):
            self._unregister(page)

    def _unregister(self, page: Page) -> None:
        for key in page.keys:
            del self._registry[key]
        page.keys.clear()


def prefix_keys(
    token_ids: Sequence[int], images: Sequence[tuple[int, int, str]], page_size: int
) -> tuple[list[PrefixKey], PrefixKey | None]:
    """Computes the keys of a prefix's pages: chained hashes of token ids and images. Equal keys mean equal content.

    Args:
        token_ids: tokens of the prefix.
        images: (index of the first placeholder, number of placeholders, digest) of each image.
        page_size: tokens per page.

    Returns:
        The keys of the full pages, and the key of the last, partial page (None if there is none).
    """
    keys: list[PrefixKey] = []
    chain = b""
    for start in range(0, len(token_ids), page_size):
        end = min(start + page_size, len(token_ids))
        content = hashlib.blake2b(chain, digest_size=16)
        content.update(np.asarray(token_ids[start:end], np.int32).tobytes())
        for first, count, digest in images:
            if first < end and start < first + count:
                content.update(f"{first - start}:{digest};".encode())
        chain = content.digest()
        keys.append(chain)
    partial = keys.pop() if len(token_ids) % page_size else None
    return keys, partial
