"""Maps the tokens of sequences to KV-cache pages: admission, prefix sharing, allocation and freeing."""

from __future__ import annotations

import bisect

import numpy as np
from jaxtyping import Int

from dv2_jax.engine.buckets import num_pages
from dv2_jax.engine.page_table import PageTable, prefix_keys
from dv2_jax.engine.sequence_state import SequenceState


class KVCacheManager:
    """Manages the pages of all sequences of one data-parallel shard.

    Samples of one prompt share its full pages; the last, partial page is copied per sample (copy-on-write). The first
    sample that is admitted prefills the prompt.

    Args:
        watermark: pages that an admission must leave free; a sequence then reserves pages for the tokens that it has, and
            takes others as it grows. None: it reserves pages for `max_tokens` tokens.

    Raises:
        ValueError: the pages do not hold one sequence of `max_tokens` tokens.
    """

    def __init__(self, pages: int, page_size: int, max_tokens: int, *, watermark: int | None = None):
        self.page_size = page_size
        self.max_pages = num_pages(max_tokens, page_size)
        self.pad_slot = pages * page_size  # out of range, so that writes to it are dropped (vLLM: PAD_SLOT_ID)
        if pages < self.max_pages:
            raise ValueError(
                f"engine.pages {pages} of {page_size} tokens cannot hold one sequence of {max_tokens} tokens; "
                f"at least {self.max_pages} are needed"
            )
        self.page_table = PageTable(pages, page_size)
        self.watermark = watermark
        self._waiting: list[SequenceState] = []  # in the order of arrival
        self._arrivals = self._admitted = 0
        self._shared_tokens = 0

    @property
    def waiting(self) -> int:
        """Number of sequences that wait for admission."""
        return len(self._waiting)

    @property
    def waits_for_pages(self) -> bool:
        """True if a sequence with work waits for admission."""
        return any(not (sequence.parked and sequence.preempted) for sequence in self._waiting)

    @property
    def shared_tokens(self) -> int:
        """Number of prompt tokens taken from shared pages instead of being prefilled."""
        return self._shared_tokens

    def enqueue(self, sequence: SequenceState) -> None:
        """Computes the prefix keys of the prompt's pages and appends the sequence to the admission queue."""
        sequence.prompt_end = len(sequence.token_ids) - 1
        images = [(first, image.tokens, image.digest) for first, image in sequence.images]
        prompt = sequence.token_ids[: sequence.prompt_end]
        sequence.prompt_keys, sequence.partial_page_key = prefix_keys(prompt, images, self.page_size)
        sequence.arrival = self._arrivals
        self._arrivals += 1
        self._waiting.append(sequence)

    def admit(self) -> None:
        """Admits sequences in the order of their arrival while there are enough pages.

        A preempted sequence that is parked keeps its place, but the others do not wait for it.
        """
        for sequence in list(self._waiting):
            if sequence.parked and sequence.preempted:
                continue
            wanted, spare = self.max_pages, 0
            if self.watermark is not None:
                wanted = max(1, num_pages(len(sequence.token_ids) - 1, self.page_size))
                spare = self.watermark if self._admitted else 0
            keys = sequence.prompt_keys, sequence.partial_page_key
            found = self.page_table.admit(sequence.id, wanted, *keys, spare=spare)
            if found is None:
                return
            self._waiting.remove(sequence)
            self._admitted += 1
            shared, sequence.copy_on_write_source = found
            sequence.pages, sequence.admitted, sequence.preempted = list(shared), True, False
            # Allocate and register prompt pages at admission, so that the next sample of the group can share them
            # before they are filled.
            self.allocate_pages(sequence, sequence.prompt_end)
            for key, page in list(zip(sequence.prompt_keys, sequence.pages, strict=False))[len(shared) :]:
                self.page_table.register_prefix(key, page)
            if sequence.partial_page_key is not None and sequence.copy_on_write_source is None:
                self.page_table.register_prefix(sequence.partial_page_key, sequence.pages[-1])

    def allocate_pages(self, sequence: SequenceState, tokens: int) -> None:
        """Allocates pages until the sequence has room for its first `tokens` tokens."""
        while len(sequence.pages) * self.page_size < tokens:
            page = self.page_table.allocate(sequence.id, beyond_reservation=self.watermark is not None)
            sequence.pages.append(page)

    def has_room(self, sequence: SequenceState, tokens: int) -> bool:
        """Returns whether pages for the first `tokens` tokens of an admitted sequence can be allocated now."""
        return num_pages(tokens, self.page_size) - len(sequence.pages) <= self.page_table.available(sequence.id)

    def preempt(self, sequence: SequenceState) -> None:
        """Frees the pages of an admitted sequence and puts it back into the queue, at the place of its arrival.

        All its tokens are prefilled again once it is admitted, sampled ones included.
        """
        self.free_sequence(sequence)
        sequence.cached, sequence.preempted = 0, True
        bisect.insort(self._waiting, sequence, key=lambda other: other.arrival)

    def advance_shared_prefix(self, sequence: SequenceState) -> tuple[int, int] | None:
        """Marks tokens as cached whose shared pages other sequences have filled since the last call.

        Returns (source, target) page numbers if the prompt's partial page is now to be copied (copy-on-write).
        """
        while sequence.cached + self.page_size <= sequence.prompt_end and sequence.cached % self.page_size == 0:
            page = sequence.pages[sequence.cached // self.page_size]
            if page.owner == sequence.id or page.filled < self.page_size:
                return None
            sequence.cached += self.page_size
            self._shared_tokens += self.page_size
        source, tail = sequence.copy_on_write_source, sequence.prompt_end % self.page_size
        if source is None or sequence.cached < sequence.prompt_end - tail:
            return None
        if source.filled < tail and source.owner:
            return None
        sequence.copy_on_write_source = None
        copy = None
        if source.filled >= tail and sequence.cached == sequence.prompt_end - tail:
            copy = (source.number, sequence.pages[sequence.prompt_end // self.page_size].number)
            sequence.cached = sequence.prompt_end
            self._shared_tokens += tail
        self.page_table.decref(source)
        return copy

    def blocked_on_shared_prefix(self, sequence: SequenceState) -> bool:
        """Returns True if the sequence is not admitted or another sequence is filling the next page of its prompt."""
        if not sequence.admitted or sequence.cached >= sequence.prompt_end:
            return not sequence.admitted
        page = sequence.pages[sequence.cached // self.page_size]
        if sequence.copy_on_write_source is not None and sequence.cached >= len(sequence.prompt_keys) * self.page_size:
            page = sequence.copy_on_write_source
        return page.owner not in ("", sequence.id)

    def mark_written(self, sequence: SequenceState, start: int, end: int) -> None:
        """Marks tokens start ... end - 1 as written; their prefill has been dispatched."""
        for index in range(start // self.page_size, num_pages(end, self.page_size)):
            page = sequence.pages[index]
            page.filled = max(page.filled, min(self.page_size, end - index * self.page_size))
        sequence.cached = end

    def slots(self, sequence: SequenceState, start: int, end: int) -> Int[np.ndarray, "t"]:
        """Returns the slots of tokens start ... end - 1: page number * page size + offset in the page."""
        tokens = np.arange(start, end)
        numbers = np.array([page.number for page in sequence.pages], np.int32)
        return (numbers[tokens // self.page_size] * self.page_size + tokens % self.page_size).astype(np.int32)

    def page_table_row(self, sequence: SequenceState, width: int) -> Int[np.ndarray, "n"]:
        """Returns the numbers of the first `width` pages, padded with 0 beyond the sequence's own."""
        numbers = [page.number for page in sequence.pages[:width]]
        return np.array(numbers + [0] * (width - len(numbers)), np.int32)

    def free_sequence(self, sequence: SequenceState) -> None:
        """Frees the pages of a sequence, or removes it from the admission queue."""
        if not sequence.admitted:
            if sequence in self._waiting:
                self._waiting.remove(sequence)
            return
        if sequence.copy_on_write_source is not None:
            self.page_table.decref(sequence.copy_on_write_source)
            sequence.copy_on_write_source = None
        self.page_table.free_sequence(sequence.id, sequence.pages)
        sequence.pages, sequence.admitted = [], False
        self._admitted -= 1
