"""Which tokens of which sequence lie in which page: admission, sharing of prompts, growth, release."""

from __future__ import annotations

from collections import deque

import numpy as np
from jaxtyping import Int

from dv2_jax.engine.buckets import pages_of
from dv2_jax.engine.page_table import PageTable, prefix_keys
from dv2_jax.engine.sequence_state import Sequence


class Memory:
    """The pages of all sequences.

    The samples of a group have one prompt: the first of them to be admitted prefills it, the others hold the same
    full pages and get a copy of the last, partly filled one, into which each writes on.
    """

    def __init__(self, pages: int, page_size: int, max_tokens: int):
        self.size = page_size
        self.worst_case = pages_of(max_tokens, page_size)
        self.nowhere = pages * page_size  # a slot beyond the last page: what is written there is dropped
        if pages < self.worst_case:
            raise ValueError(
                f"engine.pages {pages} of {page_size} tokens cannot hold one sequence of {max_tokens} tokens; "
                f"at least {self.worst_case} are needed"
            )
        self.table = PageTable(pages, page_size)
        self._waiting: deque[Sequence] = deque()
        self._shared_tokens = 0

    @property
    def waiting(self) -> int:
        """Sequences that wait for pages."""
        return len(self._waiting)

    @property
    def shared_tokens(self) -> int:
        """Prompt tokens that were never computed, because another sequence had."""
        return self._shared_tokens

    def enqueue(self, sequence: Sequence) -> None:
        """Names the pages of a prompt and puts the sequence into the queue."""
        sequence.prompt_end = len(sequence.token_ids) - 1
        pictures = [(first, picture.tokens, picture.digest) for first, picture in sequence.pictures]
        prompt = sequence.token_ids[: sequence.prompt_end]
        sequence.prompt_keys, sequence.tail_key = prefix_keys(prompt, pictures, self.size)
        self._waiting.append(sequence)

    def admit(self) -> None:
        """Gives pages to the head of the queue as long as there are enough; nobody overtakes."""
        while self._waiting:
            sequence = self._waiting[0]
            found = self.table.admit(sequence.id, self.worst_case, sequence.prompt_keys, sequence.tail_key)
            if found is None:
                return
            self._waiting.popleft()
            shared, sequence.tail_source = found
            sequence.pages, sequence.admitted = list(shared), True
            # Taken and named at once: siblings that are admitted next already share what is still to be filled.
            self.grow(sequence, sequence.prompt_end)
            for key, page in list(zip(sequence.prompt_keys, sequence.pages, strict=False))[len(shared) :]:
                self.table.register(key, page)
            if sequence.tail_key is not None and sequence.tail_source is None:
                self.table.register(sequence.tail_key, sequence.pages[-1])

    def grow(self, sequence: Sequence, tokens: int) -> None:
        """Pages for the first ``tokens`` tokens."""
        while len(sequence.pages) * self.size < tokens:
            sequence.pages.append(self.table.take(sequence.id))

    def catch_up(self, sequence: Sequence) -> tuple[int, int] | None:
        """Counts as cached what others have filled meanwhile.

        Returns (source, target) when the tail of the prompt is now to be copied from one page to another.
        """
        while sequence.cached + self.size <= sequence.prompt_end and sequence.cached % self.size == 0:
            page = sequence.pages[sequence.cached // self.size]
            if page.owner == sequence.id or page.filled < self.size:
                return None
            sequence.cached += self.size
            self._shared_tokens += self.size
        source, tail = sequence.tail_source, sequence.prompt_end % self.size
        if source is None or sequence.cached < sequence.prompt_end - tail:
            return None
        if source.filled < tail and source.owner:
            return None
        sequence.tail_source = None
        copy = None
        if source.filled >= tail and sequence.cached == sequence.prompt_end - tail:
            copy = (source.number, sequence.pages[sequence.prompt_end // self.size].number)
            sequence.cached = sequence.prompt_end
            self._shared_tokens += tail
        self.table.drop(source)
        return copy

    def must_wait(self, sequence: Sequence) -> bool:
        """Whether another sequence is about to fill the next page of this one's prompt."""
        if not sequence.admitted or sequence.cached >= sequence.prompt_end:
            return not sequence.admitted
        page = sequence.pages[sequence.cached // self.size]
        if sequence.tail_source is not None and sequence.cached >= len(sequence.prompt_keys) * self.size:
            page = sequence.tail_source
        return page.owner not in ("", sequence.id)

    def written(self, sequence: Sequence, start: int, end: int) -> None:
        """Notes that tokens start ... end - 1 of a sequence are being prefilled."""
        for index in range(start // self.size, pages_of(end, self.size)):
            page = sequence.pages[index]
            page.filled = max(page.filled, min(self.size, end - index * self.size))
        sequence.cached = end

    def slots(self, sequence: Sequence, start: int, end: int) -> Int[np.ndarray, "t"]:
        """Where tokens start ... end - 1 lie: page * page size + place in the page."""
        tokens = np.arange(start, end)
        numbers = np.array([page.number for page in sequence.pages], np.int32)
        return (numbers[tokens // self.size] * self.size + tokens % self.size).astype(np.int32)

    def page_row(self, sequence: Sequence, width: int) -> Int[np.ndarray, "n"]:
        """The first ``width`` pages; any page beyond the sequence's own."""
        numbers = [page.number for page in sequence.pages[:width]]
        return np.array(numbers + [0] * (width - len(numbers)), np.int32)

    def release(self, sequence: Sequence) -> None:
        """Takes everything back."""
        if not sequence.admitted:
            if sequence in self._waiting:
                self._waiting.remove(sequence)
            return
        if sequence.tail_source is not None:
            self.table.drop(sequence.tail_source)
            sequence.tail_source = None
        self.table.release(sequence.id, sequence.pages)
        sequence.pages, sequence.admitted = [], False
