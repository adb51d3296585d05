"""The listed shapes of dispatches: everything that is ever compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dv2_jax.config import EngineConfig


@dataclass(frozen=True)
class Shapes:
    """Row counts and page-table widths, ascending. ``prefill_widths`` begins with 0: a prompt has no prefix."""

    decode_rows: tuple[int, ...]
    prefill_rows: tuple[int, ...]
    decode_widths: tuple[int, ...]
    prefill_widths: tuple[int, ...]

    @classmethod
    def of(cls, config: EngineConfig, max_tokens: int) -> Shapes:
        """Whole and quarter row counts; the pages of a longest sequence, their half and their quarter."""
        longest = pages_of(max_tokens, config.page_size)
        widths = tuple(sorted({longest, -(-longest // 2), -(-longest // 4)}))
        return cls(
            decode_rows=_whole_and_quarter(config.slots),
            prefill_rows=_whole_and_quarter(config.prefill_rows),
            decode_widths=widths,
            prefill_widths=(0, *widths),
        )


def pages_of(tokens: int, page_size: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // page_size)


def smallest(sizes: Sequence[int], needed: int) -> int:
    """The smallest listed size that is enough."""
    return next(size for size in sizes if size >= needed)


def _whole_and_quarter(rows: int) -> tuple[int, ...]:
    return tuple(sorted({rows, max(1, rows // 4)}))
