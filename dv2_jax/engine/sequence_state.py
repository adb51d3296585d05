"""Host-side state of a sequence in the engine."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from dv2_jax.data.chat_encoder import ImageInput
from dv2_jax.engine.page_table import Page, PrefixKey
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.positions import mrope_positions


@dataclass
class Generation:
    """State of the turn that is being sampled."""

    max_new_tokens: int
    temperature: float
    state: int = 0  # state of the stop automaton
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(eq=False)
class SequenceState:
    """Token ids of a sequence, how many of them are in the KV cache, and its pages.

    The last token is never prefilled: it is the first input of the next decode dispatch, whose logits sample the
    next token. `cached` is therefore at most `len(token_ids) - 1`.
    """

    id: Hashable
    key: int  # seed of its random numbers
    token_ids: list[int] = field(default_factory=list)
    positions: Int[np.ndarray, "3 T"] = field(default_factory=lambda: np.zeros((3, 0), np.int32))
    next_position: int = 0
    images: list[tuple[int, ImageInput]] = field(default_factory=list)  # (index of the first placeholder, image)
    shard: int = 0  # data-parallel shard: its devices hold the pages and compute the rows of this sequence
    pages: list[Page] = field(default_factory=list)
    admitted: bool = False
    arrival: int = 0  # number of its first append among those of its shard
    preempted: bool = False  # its pages were freed for another sequence; it is computed again when it has work
    cached: int = 0
    prompt_keys: list[PrefixKey] = field(default_factory=list)  # prefix keys of the prompt's full pages
    partial_page_key: PrefixKey | None = None  # prefix key of the prompt's last, partial page
    copy_on_write_source: Page | None = None  # page of another sequence to copy that partial page from
    prompt_end: int = 0  # number of prompt tokens that are prefilled: all but the last
    generation: Generation | None = None

    @property
    def to_prefill(self) -> int:
        """Number of tokens that are still to be prefilled."""
        return max(0, len(self.token_ids) - 1 - self.cached)

    @property
    def ready(self) -> bool:
        """True if the sequence can be decoded."""
        return self.admitted and self.generation is not None and not self.to_prefill

    @property
    def budget(self) -> int:
        """Number of tokens that the turn in progress may still sample."""
        return 0 if self.generation is None else self.generation.max_new_tokens - len(self.generation.token_ids)

    @property
    def parked(self) -> bool:
        """True if the sequence has nothing to compute until its caller appends tokens or requests a turn."""
        return self.generation is None and (self.preempted or not self.to_prefill)

    def images_between(self, start: int, end: int) -> list[tuple[int, ImageInput]]:
        """Returns the images with a placeholder among tokens start ... end - 1."""
        return [(first, p) for first, p in self.images if first < end and start < first + p.tokens]

    def extend_text(self, token_ids: Iterable[int]) -> None:
        """Appends sampled tokens. They are text, so all three M-RoPE components count up."""
        count = len(self.token_ids)
        self.token_ids.extend(token_ids)
        added = len(self.token_ids) - count
        steps = np.arange(self.next_position, self.next_position + added, dtype=np.int32)
        self.positions = np.concatenate([self.positions, np.broadcast_to(steps, (3, added))], axis=1)
        self.next_position += added

    def extend(self, token_ids: Iterable[int], images: Iterable[ImageInput], config: ModelConfig) -> None:
        """Appends a prompt or an observation. Raises ValueError if placeholders and images do not match."""
        token_ids, images = list(token_ids), list(images)
        added, following = mrope_positions(token_ids, [p.grid for p in images], config, start=self.next_position)
        at = len(self.token_ids)
        for image in images:
            at = len(self.token_ids) + token_ids.index(config.image_token_id, at - len(self.token_ids))
            self.images.append((at, image))
            at += image.tokens
        self.token_ids.extend(token_ids)
        self.positions = np.concatenate([self.positions, added], axis=1)
        self.next_position = following
