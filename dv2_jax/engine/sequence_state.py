"""A sequence as the engine's host half knows it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from dv2_jax.data.chat_encoder import PictureInput
from dv2_jax.engine.page_table import Page, PrefixKey
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.positions import mrope_positions


@dataclass
class Generation:
    """A turn that is being sampled."""

    max_new_tokens: int
    temperature: float
    state: int = 0  # of the stop automaton
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Sequence:
    """Ids, the part of them that is cached, and the pages that hold it.

    The last token is never prefilled: it is the first input of the next decode dispatch, whose logits sample
    what follows. ``cached`` therefore runs up to ``len(token_ids) - 1``.
    """

    id: str
    key: int  # names its random numbers
    token_ids: list[int] = field(default_factory=list)
    positions: Int[np.ndarray, "3 T"] = field(default_factory=lambda: np.zeros((3, 0), np.int32))
    next_position: int = 0
    pictures: list[tuple[int, PictureInput]] = field(default_factory=list)  # (first placeholder, picture)
    group: int = 0  # of devices: its pages lie there, and its rows are computed there
    pages: list[Page] = field(default_factory=list)
    admitted: bool = False
    cached: int = 0
    prompt_keys: list[PrefixKey] = field(default_factory=list)  # of full pages
    tail_key: PrefixKey | None = None  # of the prompt's last, partly filled page
    tail_source: Page | None = None  # a sibling's page from which that tail is to be copied
    prompt_end: int = 0  # tokens of the prompt that are prefilled: all but its last
    generation: Generation | None = None

    @property
    def to_prefill(self) -> int:
        """Tokens that wait for a prefill dispatch."""
        return max(0, len(self.token_ids) - 1 - self.cached)

    @property
    def ready(self) -> bool:
        """Whether it can decode."""
        return self.admitted and self.generation is not None and not self.to_prefill

    def pictures_between(self, start: int, end: int) -> list[tuple[int, PictureInput]]:
        """Pictures with a placeholder among tokens start ... end - 1."""
        return [(first, p) for first, p in self.pictures if first < end and start < first + p.tokens]

    def extend_text(self, token_ids: Iterable[int]) -> None:
        """Appends sampled tokens: text, so that all three positions count up."""
        count = len(self.token_ids)
        self.token_ids.extend(token_ids)
        added = len(self.token_ids) - count
        steps = np.arange(self.next_position, self.next_position + added, dtype=np.int32)
        self.positions = np.concatenate([self.positions, np.broadcast_to(steps, (3, added))], axis=1)
        self.next_position += added

    def extend(self, token_ids: Iterable[int], pictures: Iterable[PictureInput], config: ModelConfig) -> None:
        """Appends a prompt or an observation. Raises ValueError when placeholders and pictures do not match."""
        token_ids, pictures = list(token_ids), list(pictures)
        added, following = mrope_positions(token_ids, [p.grid for p in pictures], config, start=self.next_position)
        at = len(self.token_ids)
        for picture in pictures:
            at = len(self.token_ids) + token_ids.index(config.image_token_id, at - len(self.token_ids))
            self.pictures.append((at, picture))
            at += picture.tokens
        self.token_ids.extend(token_ids)
        self.positions = np.concatenate([self.positions, added], axis=1)
        self.next_position = following
