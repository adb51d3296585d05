"""The listed shapes of dispatches: everything that is ever compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dv2_jax.config import ConfigError, EngineConfig

DIVIDED = ("slots", "prefill_rows", "pages")  # fields that count all devices together


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
        for name in DIVIDED:
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


def of_one_host(config: EngineConfig, hosts: int) -> EngineConfig:
    """The sizes of the engine that each of several hosts has."""
    for name in DIVIDED:
        if getattr(config, name) % hosts:
            raise ConfigError(
                f"engine.{name} = {getattr(config, name)} does not divide among {hosts} hosts; use a multiple of {hosts}"
            )
    return replace(config, **{name: getattr(config, name) // hosts for name in DIVIDED})


def pages_of(tokens: int, page_size: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // page_size)


def smallest(sizes: Sequence[int], needed: int) -> int:
    """The smallest listed size that is enough."""
    return next(size for size in sizes if size >= needed)


def _whole_and_quarter(rows: int, groups: int) -> tuple[int, ...]:
    return tuple(sorted({rows, groups * max(1, rows // groups // 4)}))
