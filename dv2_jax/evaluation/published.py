"""Values that the paper publishes, by the names of benchmarks here, with the intervals of as many independent questions.

Source: DeepEyesV2 (arXiv 2511.05271), Tables 1 to 4 and 7 to 9, as printed there; the values of other models may differ
from those of their own papers. `CAVEATS` says what is known of each protocol. Numbers of questions are those of the
published files; WeMath is the strict score, OCRBench the share of its 1,000 points. `model+search` is a model with no
search (`none`), with search by `text`, by `image`, or `both`; `qwen2.5-vl-7b` alone has search on the four search benchmarks, and none on RealX-Bench.
"""

from __future__ import annotations

from dataclasses import dataclass

from dv2_jax.config import UserError
from dv2_jax.config.overrides import suggest
from dv2_jax.evaluation.statistics import wilson_interval


class PublishedModelError(UserError):
    """No values of such a model are known; the message names those that are."""


@dataclass(frozen=True)
class PublishedValue:
    """A score as a fraction of 1, and the number of questions behind it."""

    value: float
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval. It is too narrow where questions share an image or a template."""
        return wilson_interval(self.value * self.n, self.n)

    def __str__(self) -> str:
        low, high = (100 * bound for bound in self.interval)
        return f"{100 * self.value:.1f}, {low:.1f} to {high:.1f}"


QUESTIONS = {
    "vstar": 191, "hrbench4k": 800, "hrbench8k": 800, "mme_realworld": 23_609, "treebench": 405, "ocrbench": 1_000,
    "seedbench2_plus": 2_277, "charxiv_descriptive": 4_000, "charxiv_reasoning": 1_000, "chartqa": 2_500,
    "mathvista": 1_000, "mathverse": 3_940, "mathvision": 3_040, "wemath": 525, "dynamath": 5_010, "logicvista": 448,
    "fvqa": 1_800, "infoseek": 2_000, "mmsearch": 171, "simplevqa": 1_013, "realx": 300, "tir": 1_215,
}  # fmt: skip
_JUDGED = "judge of the paper unknown"
_RUBRIC = f"the released evaluation adds a rubric judge (scorer deepeyesv2); {_JUDGED}"
CAVEATS = {
    **dict.fromkeys(("vstar", "hrbench4k", "hrbench8k", "seedbench2_plus", "chartqa", "wemath"), _RUBRIC),
    "treebench": "the released prompts leave out the options of Perception/OCR (treebench_deepeyesv2)",
    **dict.fromkeys(("charxiv_descriptive", "charxiv_reasoning", "mathvista", "mathverse", "mathvision"), _JUDGED),
    **dict.fromkeys(("dynamath", "logicvista"), _JUDGED),
    **dict.fromkeys(("fvqa", "infoseek", "mmsearch", "simplevqa"), f"search service and code unpublished; {_JUDGED}"),
    "realx": f"300 questions, of which 194 are public; search service and code unpublished; {_JUDGED}",
    "tir": "prompts and judge of the paper unknown",
}
_PERCEPTION = (
    "vstar", "hrbench4k", "hrbench8k", "mme_realworld", "treebench", "ocrbench", "seedbench2_plus", "charxiv_descriptive",
    "charxiv_reasoning", "chartqa",
)  # fmt: skip
_MATH = ("mathvista", "mathverse", "mathvision", "wemath", "dynamath", "logicvista")
_SEARCH = ("fvqa", "infoseek", "mmsearch", "simplevqa")
_REALX = ("realx", "realx:perception", "realx:reasoning", "realx:search", "realx:integration")
REALX_SUBSETS = {"realx:perception": 164, "realx:reasoning": 178, "realx:search": 211, "realx:integration": 72}

_Row = tuple[float | None, ...]
_TABLE_2: dict[str, _Row] = {
    "llava-ov-7b": (75.4, 63.0, 59.8, 57.4, 37.3, None, None, None, None, 80.0),
    "qwen2.5-vl-7b": (78.5, 71.6, 67.9, 57.3, 37.0, 86.4, 70.4, 72.7, 40.2, 86.2),
    "qwen2.5-vl-32b": (80.6, 74.1, 69.9, None, 42.5, None, 72.4, 83.2, 48.0, None),
    "internvl3-8b": (81.2, 70.0, 69.3, None, 38.8, 88.0, 69.7, 73.6, 37.6, 86.6),
    "gpt-4o": (58.6, 60.6, 55.1, None, 48.1, 82.2, 71.9, 85.9, 47.5, None),
    "gemini-2.5-pro": (79.6, 86.9, None, 71.6, 49.1, 88.1, 75.0, 92.6, 67.8, None),
    "pixel-reasoner-7b": (84.3, 74.0, 66.9, 64.4, 39.0, None, None, None, None, None),
    "deepeyes-7b": (85.6, 75.1, 72.6, None, 37.5, None, None, None, None, None),
    "thyme-7b": (82.2, 77.0, 72.0, 64.8, None, 86.3, None, None, None, 86.1),
    "deepeyesv2-7b": (81.8, 77.9, 73.8, 64.9, 42.5, 88.2, 70.5, 78.6, 48.9, 88.4),
}
_TABLE_3: dict[str, _Row] = {
    "llava-ov-7b": (58.6, 19.3, 18.3, 20.9, None, 33.3),
    "qwen2.5-vl-7b": (68.3, 45.6, 25.6, 34.6, 53.3, 45.9),
    "internvl3-8b": (71.6, 39.8, 29.3, 37.1, None, 44.1),
    "gpt-4o": (59.3, 54.0, None, 41.6, 61.9, 51.2),
    "gemini-2.5-pro": (83.0, 81.4, None, None, None, None),
    "mm-eureka-7b": (72.6, None, 28.1, 21.8, None, 46.3),
    "thinklite-7b": (71.6, None, 24.6, 41.8, None, 42.7),
    "vl-rethinker-7b": (73.7, None, 28.4, 36.3, None, 42.7),
    "vlaa-thinker-7b": (71.7, None, 24.2, 35.7, None, 45.9),
    "deepeyes-7b": (70.1, 47.3, 26.6, 38.9, 55.0, 47.7),
    "thyme-7b": (70.0, None, 27.6, 39.3, None, 49.0),
    "deepeyesv2-7b": (71.9, 52.7, 28.9, 38.1, 57.2, 48.7),
}
_TABLE_4: dict[str, _Row] = {
    "gpt-4o": (41.7, 42.7, 22.2, 46.6),
    "gemini-2.5-pro": (37.2, 37.0, 26.9, 53.4),
    "qwen2.5-vl-7b+none": (20.3, 20.1, 12.8, 38.4),
    "qwen2.5-vl-7b": (52.9, 53.7, 52.2, 51.6),
    "mmsearch-r1-7b": (58.4, 55.1, 53.8, 57.4),
    "webwatcher-7b": (None, None, 49.1, 54.3),
    "deepeyesv2-7b": (60.6, 51.1, 63.7, 59.4),
}
# Table 1, with no search, text search, image search and both.
_TABLE_1: dict[str, tuple[_Row, _Row, _Row, _Row]] = {
    "gpt-4o": (
        (32.3, 29.9, 22.5, 29.4, 16.7), (32.0, 29.3, 23.0, 29.4, 16.7),
        (36.3, 29.3, 25.8, 36.5, 16.7), (38.7, 30.5, 27.5, 36.5, 15.3),
    ),
    "gemini-2.5-pro": (
        (39.3, 34.8, 24.2, 36.0, 16.7), (41.7, 39.0, 28.7, 38.4, 23.6),
        (45.0, 37.8, 33.2, 43.1, 25.0), (46.0, 41.5, 33.7, 43.6, 27.8),
    ),
    "o3": (
        (35.0, 31.7, 23.0, 30.8, 11.1), (41.0, 34.8, 28.7, 37.9, 19.4),
        (41.3, 37.8, 28.1, 40.3, 22.2), (39.3, 38.4, 25.3, 37.0, 20.8),
    ),
    "qwen2.5-vl-7b": (
        (17.0, 15.9, 13.5, 12.3, 6.9), (21.7, 17.7, 15.7, 18.5, 7.6),
        (19.7, 16.6, 14.4, 15.9, 8.3), (22.3, 17.1, 16.3, 19.9, 9.7),
    ),
    "qwen2.5-vl-32b": (
        (25.0, 21.3, 19.7, 19.9, 12.5), (25.7, 25.6, 20.2, 19.0, 16.7),
        (30.7, 27.4, 23.0, 26.1, 15.3), (32.0, 27.4, 29.2, 31.8, 23.6),
    ),
    "qwen2.5-vl-72b": (
        (25.3, 23.1, 17.4, 17.5, 9.7), (26.3, 28.7, 19.7, 20.4, 16.7),
        (28.0, 28.7, 20.2, 20.4, 15.3), (31.0, 35.4, 25.8, 25.6, 23.6),
    ),
}  # fmt: skip
_REALX_ONLY: dict[str, _Row] = {
    "thyme-7b": (21.0, 18.3, 14.6, 12.8, 4.2),
    "deepeyes-7b": (19.0, 19.5, 14.6, 12.8, 9.7),
    "deepeyesv2-7b": (28.3, 19.5, 22.5, 28.9, 18.1),
    "human": (70.0, 69.5, 63.5, 62.1, 51.4),
}
_TIR = {"qwen2.5-vl-7b": 16.0, "deepeyes-7b": 17.3, "deepeyesv2-7b-sft": 18.7, "deepeyesv2-7b": 20.8}
SEARCHES = ("none", "text", "image", "both")


def _collect() -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}

    def add(model: str, columns: tuple[str, ...], row: _Row) -> None:
        values = zip(columns, row, strict=True)
        found.setdefault(model, {}).update({name: value for name, value in values if value is not None})

    for columns, table in ((_PERCEPTION, _TABLE_2), (_MATH, _TABLE_3), (_SEARCH, _TABLE_4), (_REALX, _REALX_ONLY)):
        for model, row in table.items():
            add(model, columns, row)
    for model, rows in _TABLE_1.items():
        add(model, _REALX, rows[0])
        for tools, row in zip(SEARCHES, rows, strict=True):
            add(f"{model}+{tools}", _REALX, row)
    for model, value in _TIR.items():
        add(model, ("tir",), (value,))
    return found


_PERCENT = _collect()


def published_values(model: str) -> dict[str, PublishedValue]:
    """Returns the published values of a model by benchmark.

    Raises:
        PublishedModelError: there are none of this model.
    """
    if model not in _PERCENT:
        raise PublishedModelError(
            f"--published={model}: there are {', '.join(_PERCENT)}{suggest(model, list(_PERCENT))}"
        )
    values = {name: percent for name, percent in _PERCENT[model].items() if name in QUESTIONS}
    return {name: PublishedValue(percent / 100, QUESTIONS[name]) for name, percent in values.items()}


def published_realx(model: str) -> dict[str, PublishedValue]:
    """Returns the values of a model on RealX-Bench and its subsets, by name: `overall`, `perception` and so on.

    The sizes of the subsets are computed from the published percentages, which fit no other sizes as well.
    """
    sizes = {"realx": QUESTIONS["realx"], **REALX_SUBSETS}
    values = {name: percent for name, percent in _PERCENT.get(model, {}).items() if name in sizes}
    return {
        name.partition(":")[2] or "overall": PublishedValue(percent / 100, sizes[name])
        for name, percent in values.items()
    }


def published_line(benchmark: str, model: str = "deepeyesv2-7b") -> str:
    """Returns the published value of a benchmark for a table, such as `paper: 81.8, 75.7 to 86.6`; empty if unknown."""
    value = published_values(model).get(benchmark)
    return f"paper: {value}" if value else ""


def published_note(benchmark: str) -> str:
    """Returns the paper's value, those of the subsets of RealX-Bench, and what is known of the protocol; empty if unknown."""
    line = published_line(benchmark)
    if benchmark == "realx":
        subsets = published_realx("deepeyesv2-7b").items()
        line += "".join(f"; {name} {value}" for name, value in subsets if name != "overall")
    return f"{line} ({CAVEATS[benchmark]})" if line and benchmark in CAVEATS else line
