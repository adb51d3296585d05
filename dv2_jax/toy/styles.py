"""How the scripted teacher works: several hands, some careful and some hasty, all of them right in the end.

Real cold-start sets come from several teachers whose habits differ (spec of DeepEyesV2, 5.1). Here the careful
habit makes the last step easy for whoever learns from it, the hasty one leaves it to a steady head: a wide crop
to squint at, a vague query with a page of results, a number still to be rounded, a search nobody needed.
Supervised learning imitates the mixture; reinforcement learning has to find out which habits pay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TIGHT = 18  # half side of a careful crop, in pixels: the tag itself
WIDE = 126  # of a wide one: the digit is 6 pixels wide in the capped view, and now and then misread
LOOSE = (49, 63, 77)  # with some surroundings: what the base has seen, and its vocabulary was learned from


@dataclass(frozen=True)
class Habits:
    """Shares of trajectories, each drawn independently."""

    wide_crop: float = 0.55  # crop one of `widths` around the mark instead of TIGHT
    hasty_code: float = 0.55  # leave the last step of a computation undone
    vague_query: float = 0.55  # search for the entity alone
    needless_search: float = 0.55  # search before answering what can be seen
    slip: float = 0.06  # a first call that fails, and its repair
    widths: tuple[int, ...] = (WIDE,)  # half sides of wide crops, in pixels


CAREFUL = Habits(wide_crop=0.0, hasty_code=0.0, vague_query=0.0, needless_search=0.0, slip=0.0)


@dataclass(frozen=True)
class Mood:
    """The habits drawn for one trajectory."""

    half: int
    hasty: bool
    vague: bool
    needless: bool
    slip: bool

    @classmethod
    def draw(cls, habits: Habits, rng: np.random.Generator) -> Mood:
        wide, hasty, vague, needless, slip = rng.random(5) < (
            habits.wide_crop,
            habits.hasty_code,
            habits.vague_query,
            habits.needless_search,
            habits.slip,
        )
        return cls(
            int(rng.choice(habits.widths)) if wide else TIGHT, bool(hasty), bool(vague), bool(needless), bool(slip)
        )
