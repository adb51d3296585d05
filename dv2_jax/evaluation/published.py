"""Values that papers publish, by the names of benchmarks here, for comparison with a run.

Sources: DeepEyesV2 (arXiv 2511.05271), Tables 1 to 4 and 9; `qwen2.5-vl-7b` are its rows for the model without tools, and
on the search benchmarks with search. Numbers of questions are those of the published files; RealX-Bench has 300 in the
paper, of which 194 are public. WeMath is the strict score, OCRBench a share of 1,000 points.
"""

from __future__ import annotations

from dataclasses import dataclass

from dv2_jax.config import UserError
from dv2_jax.config.overrides import suggest


class PublishedModelError(UserError):
    """No values of such a model are known; the message names those that are."""


@dataclass(frozen=True)
class PublishedValue:
    """A score as a fraction of 1, and the number of questions behind it."""

    value: float
    n: int


QUESTIONS = {
    "vstar": 191, "hrbench4k": 800, "hrbench8k": 800, "mme_realworld": 23_609, "treebench": 405, "ocrbench": 1_000,
    "seedbench2_plus": 2_277, "charxiv_descriptive": 4_000, "charxiv_reasoning": 1_000, "chartqa": 2_500,
    "mathvista": 1_000, "mathverse": 3_940, "mathvision": 3_040, "wemath": 525, "dynamath": 5_010, "logicvista": 448,
    "fvqa": 1_800, "infoseek": 2_000, "mmsearch": 171, "simplevqa": 1_013, "realx": 300, "tir": 1_215,
}  # fmt: skip
_PERCENT: dict[str, dict[str, float]] = {
    "deepeyesv2-7b": {
        "vstar": 81.8, "hrbench4k": 77.9, "hrbench8k": 73.8, "mme_realworld": 64.9, "treebench": 42.5, "ocrbench": 88.2,
        "seedbench2_plus": 70.5, "charxiv_descriptive": 78.6, "charxiv_reasoning": 48.9, "chartqa": 88.4,
        "mathvista": 71.9, "mathverse": 52.7, "mathvision": 28.9, "wemath": 38.1, "dynamath": 57.2, "logicvista": 48.7,
        "fvqa": 60.6, "infoseek": 51.1, "mmsearch": 63.7, "simplevqa": 59.4, "realx": 28.3, "tir": 20.8,
    },
    "qwen2.5-vl-7b": {
        "vstar": 78.5, "hrbench4k": 71.6, "hrbench8k": 67.9, "mme_realworld": 57.3, "treebench": 37.0, "ocrbench": 86.4,
        "seedbench2_plus": 70.4, "charxiv_descriptive": 72.7, "charxiv_reasoning": 40.2, "chartqa": 86.2,
        "mathvista": 68.3, "mathverse": 45.6, "mathvision": 25.6, "wemath": 34.6, "dynamath": 53.3, "logicvista": 45.9,
        "fvqa": 52.9, "infoseek": 53.7, "mmsearch": 52.2, "simplevqa": 51.6, "realx": 17.0, "tir": 16.0,
    },
}  # fmt: skip


def published_values(model: str) -> dict[str, PublishedValue]:
    """Returns the published values of a model by benchmark.

    Raises:
        PublishedModelError: there are none of this model.
    """
    if model not in _PERCENT:
        raise PublishedModelError(
            f"--published={model}: there are {', '.join(_PERCENT)}{suggest(model, list(_PERCENT))}"
        )
    return {name: PublishedValue(percent / 100, QUESTIONS[name]) for name, percent in _PERCENT[model].items()}
