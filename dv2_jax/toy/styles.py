"""Defines the styles of the scripted teacher: careful and careless ways to solve a task, all with correct answers.

Published cold-start sets come from several teachers with different styles (DeepEyesV2, section on data curation). The
careful style makes the last step of a trajectory easy to learn. The careless styles leave it to the model: a wide
crop in which the digit is small, a broad query with several results, a number that is not rounded yet, a search that
the question does not need. Supervised learning imitates the mixture; RL finds the styles that are rewarded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Half sides of crops around a tag, in pixels.
TIGHT = 18  # the careful style: exactly the tag
WIDE = 126  # the careless style: the digit is 6 pixels wide in the capped view, and sometimes misread
LOOSE = (49, 63, 77)  # the tag with some surroundings; used in pre-training and in the vocabulary's training text


@dataclass(frozen=True)
class StyleMix:
    """The share of trajectories that have each careless style; styles are drawn independently."""

    wide_crop: float = 0.55  # crops one of `widths` around the tag instead of TIGHT
    incomplete_code: float = 0.55  # code leaves the last step of the computation to the model
    broad_query: float = 0.55  # searches for the entity without the attribute
    needless_search: float = 0.55  # searches before answering a question that needs no tool
    error_then_retry: float = 0.06  # the first call fails and is corrected
    widths: tuple[int, ...] = (WIDE,)  # half sides of wide crops, in pixels


CAREFUL = StyleMix(wide_crop=0.0, incomplete_code=0.0, broad_query=0.0, needless_search=0.0, error_then_retry=0.0)


@dataclass(frozen=True)
class TrajectoryStyle:
    """The styles drawn for one trajectory."""

    crop_half_side: int  # pixels
    incomplete_code: bool
    broad_query: bool
    needless_search: bool
    error_then_retry: bool

    @classmethod
    def sample(cls, mix: StyleMix, rng: np.random.Generator) -> TrajectoryStyle:
        """Draws the styles of one trajectory from `mix`."""
        shares = (mix.wide_crop, mix.incomplete_code, mix.broad_query, mix.needless_search, mix.error_then_retry)
        wide_crop, incomplete_code, broad_query, needless_search, error_then_retry = map(bool, rng.random(5) < shares)
        return cls(
            crop_half_side=int(rng.choice(mix.widths)) if wide_crop else TIGHT,
            incomplete_code=incomplete_code,
            broad_query=broad_query,
            needless_search=needless_search,
            error_then_retry=error_then_retry,
        )
