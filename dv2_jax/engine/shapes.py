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
    def of(cls, config: EngineConfig, max_tokens: int, groups: int = 1) -> Shapes:
        """Whole and quarter row counts; the pages of a longest sequence, their half and their quarter.

        Raises:
            ValueError: when rows or pages cannot be split over the groups of devices.
        """
        for name in ("slots", "prefill_rows", "pages"):
            if getattr(config, name) % groups:
                raise ValueError(f"engine.{name} {getattr(config, name)} is no multiple of {groups} groups of devices")
        longest = pages_of(max_tokens, config.page_size)
        widths = tuple(sorted({longest, -(-longest // 2), -(-longest // 4)}))
        return cls(
            decode_rows=_whole_and_quarter(config.slots, groups),
            prefill_rows=_whole_and_quarter(config.prefill_rows, groups),
            decode_widths=widths,
            prefill_widths=(0, *widths),
        )


def pages_of(tokens: int, page_size: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // page_size)


def smallest(sizes: Sequence[int], needed: int) -> int:
    """The smallest listed size that is enough."""
    return next(size for size in sizes if size >= needed)


def _whole_and_quarter(rows: int, groups: int) -> tuple[int, ...]:
    return tuple(sorted({rows, groups * max(1, rows // groups // 4)}))
