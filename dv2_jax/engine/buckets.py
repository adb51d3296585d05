"""Batch sizes and page-table widths that dispatches are padded to, so that all programs are compiled at warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dv2_jax.config import ConfigError, EngineConfig

_SHARDED_FIELDS = ("slots", "prefill_rows", "pages")  # totals over all devices


@dataclass(frozen=True)
class Buckets:
    """Batch sizes and page-table widths in ascending order; `prefill_widths` starts with 0 (no cached prefix)."""

    decode_rows: tuple[int, ...]
    prefill_rows: tuple[int, ...]
    decode_widths: tuple[int, ...]
    prefill_widths: tuple[int, ...]

    @classmethod
    def from_config(cls, config: EngineConfig, max_tokens: int, num_shards: int = 1) -> Buckets:
        """Returns full and quarter batch sizes, and widths for a full, half and quarter length sequence.

        Raises:
            ValueError: if slots, prefill rows or pages are not divisible by `num_shards`.
        """
        for name in _SHARDED_FIELDS:
            if getattr(config, name) % num_shards:
                raise ValueError(
                    f"engine.{name} {getattr(config, name)} is not a multiple of {num_shards} data-parallel shards"
                )
        longest = num_pages(max_tokens, config.page_size)
        widths = tuple(sorted({longest, -(-longest // 2), -(-longest // 4)}))
        return cls(
            decode_rows=_full_and_quarter(config.slots, num_shards),
            prefill_rows=_full_and_quarter(config.prefill_rows, num_shards),
            decode_widths=widths,
            prefill_widths=(0, *widths),
        )


def per_host(config: EngineConfig, hosts: int) -> EngineConfig:
    """Returns the engine sizes of one of `hosts` hosts.

    Raises:
        ConfigError: if slots, prefill rows or pages are not divisible by `hosts`.
    """
    for name in _SHARDED_FIELDS:
        if getattr(config, name) % hosts:
            raise ConfigError(
                f"engine.{name} = {getattr(config, name)} is not divisible by {hosts} hosts; use a multiple of {hosts}"
            )
    return replace(config, **{name: getattr(config, name) // hosts for name in _SHARDED_FIELDS})


def num_pages(tokens: int, page_size: int) -> int:
    """Returns the number of pages that hold `tokens` tokens."""
    return -(-tokens // page_size)


def bucket_for(sizes: Sequence[int], needed: int) -> int:
    """Returns the smallest of `sizes` (ascending) that is at least `needed`."""
    return next(size for size in sizes if size >= needed)


def _full_and_quarter(rows: int, num_shards: int) -> tuple[int, ...]:
    return tuple(sorted({rows, num_shards * max(1, rows // num_shards // 4)}))
