"""Chooses the rows of a set so that groups have given shares."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from dv2_jax.config import ConfigError

LONG_COT: Literal["long_cot"] = "long_cot"  # rows without images, as the paper counts its long chains of thought

# Shares of the paper's sets (Figure 9).
PAPER_MIXTURES: dict[str, dict[str, float]] = {
    "sft": {LONG_COT: 0.816, "reason": 0.096, "perception": 0.081, "search": 0.007},
    "rl": {"perception": 0.519, "reason": 0.416, "search": 0.065},
}


def parse_mixture(texts: Sequence[str], key: str, paper: str) -> dict[str, float]:
    """Parses shares `GROUP=SHARE`, or `paper` for those of the paper's set `paper`; they are scaled to sum to 1.

    Raises:
        ConfigError: a share is no positive number, or a group is named twice.
    """
    if tuple(texts) == ("paper",):
        return PAPER_MIXTURES[paper]
    shares: dict[str, float] = {}
    for text in texts:
        group, _, written = text.partition("=")
        try:
            share = float(written)
        except ValueError:
            share = 0.0
        if not (group and share > 0 and math.isfinite(share)):
            raise ConfigError(f"{key}: {text!r}: write paper, or GROUP=SHARE with a positive number")
        if group in shares:
            raise ConfigError(f"{key}: {group!r} is named twice")
        shares[group] = share
    total = sum(shares.values())
    return {group: share / total for group, share in shares.items()}


def choose_rows(
    groups: Mapping[str, Sequence[str]], shares: Mapping[str, float], size: int, seed: int
) -> tuple[list[str], dict[str, int]]:
    """Chooses rows so that their groups have the given shares; returns their ids, sorted, and the count of each group.

    The choice depends on ids and `seed` alone: a row more in one group changes at most one choice in that group. Without
    shares, every row is chosen up to `size`. With shares, groups that have none are left out, and the total is the largest
    that every group can fill (or `size`, if smaller).

    Args:
        groups: ids of the rows of each group.
        size: number of rows; 0: as many as possible.
    """
    if not shares:
        everything = sorted(
            (row_id for rows in groups.values() for row_id in rows), key=lambda row_id: _rank(row_id, seed)
        )
        chosen = sorted(everything[: size or None])
        kept = set(chosen)
        return chosen, {group: sum(row_id in kept for row_id in rows) for group, rows in groups.items()}
    present = {group: share for group, share in shares.items() if groups.get(group)}
    if not present:
        return [], {}
    scale = sum(present.values())
    total = min(len(groups[group]) / (share / scale) for group, share in present.items())
    total = min(total, size) if size else total
    counts = {group: min(len(groups[group]), round(total * share / scale)) for group, share in present.items()}
    chosen = []
    for group, count in counts.items():
        chosen += sorted(groups[group], key=lambda row_id: _rank(row_id, seed))[:count]
    return sorted(chosen), counts


def _rank(row_id: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{row_id}".encode("utf-8", "surrogatepass")).digest()
