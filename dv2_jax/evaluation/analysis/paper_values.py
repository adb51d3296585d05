"""Values that the paper publishes about tool use, by the names of benchmarks here."""

from __future__ import annotations

from dataclasses import dataclass

MEASURED = "measured from the paper's figure, ±2 points"  # Figure 6 prints no numbers: pixel areas of its pies
PRINTED = "printed in the paper's figure"
READ_OFF = "read off the paper's curves"

# Figure 7: percent of questions with at least one call, (after the cold start, after RL); None: not plotted.
TOOL_RATES: dict[str, tuple[float, float | None]] = {
    "vstar": (92.7, 92.1),
    "hrbench": (73.2, None),
    "seedbench2_plus": (87.3, 67.8),
    "charxiv_descriptive": (89.2, 76.3),
    "charxiv_reasoning": (92.5, 66.4),
    "mathvista": (95.1, 56.9),
    "mathverse": (96.8, 78.6),
    "mmsearch": (98.8, 84.2),
    "infoseek": (99.0, 58.9),
}

# Figure 6: percent of calls, (after the cold start, after RL).
KIND_SHARES: dict[str, dict[str, tuple[float, float]]] = {
    "vstar": {"crop": (90, 92), "numerical": (0, 0), "mark": (9, 7), "other": (1, 2)},
    "seedbench2_plus": {"crop": (49, 53), "numerical": (28, 23), "mark": (20, 19), "other": (4, 4)},
    "charxiv_descriptive": {"crop": (59, 34), "numerical": (35, 59), "mark": (6, 7), "other": (1, 0)},
    "charxiv_reasoning": {"crop": (45, 34), "numerical": (46, 58), "mark": (7, 6), "other": (2, 3)},
    "mathvista": {"crop": (22, 8), "numerical": (56, 90), "mark": (20, 2), "other": (2, 1)},
    "mathverse": {"crop": (0, 0), "numerical": (99, 100), "mark": (1, 0), "other": (0, 0)},
    "mmsearch": {"image search": (73, 46), "text search": (27, 54)},
    "infoseek": {"crop": (0, 3), "image search": (83, 52), "text search": (17, 45)},
}

# Figure 8: first and last of about 60 RL steps, and Figure 10: direction during RL.
STEP_TRENDS = {
    "response tokens": "545 to 350",
    "reward": "0.41 to 0.49",
    "tool calls": "1.45 to 1.12, band of one standard deviation 0.5–2.4 to 0.6–1.65",
}
KIND_TRENDS = "mark stays, crop rises then falls, numerical analysis and other code fall then rise"


@dataclass(frozen=True)
class PublishedBenefit:
    """Diagnostics of a model, in percent, as the paper on Beacon reports them."""

    model: str
    ma_tool: float | None
    ma_text: float | None
    ma_mean: float
    gain: float | None
    harm: float | None
    delta: float | None


BENEFITS = (
    PublishedBenefit("DeepEyesV2-7B", 99.7, 0.6, 50.2, 7.85, 6.11, 1.74),
    PublishedBenefit("Metis", None, None, 52.7, None, None, None),
    PublishedBenefit("Beacon", None, None, 58.8, None, None, 3.14),
)


def published_rate(benchmark: str) -> tuple[float, float | None] | None:
    """Returns the Figure 7 values of a benchmark; the paper has one HRBench for both sizes."""
    return TOOL_RATES.get("hrbench" if benchmark.startswith("hrbench") else benchmark)


def published_share(benchmark: str, title: str) -> tuple[float, float] | None:
    """Returns the Figure 6 values of a class of use by its title; classes that the pie lacks have none."""
    shares = KIND_SHARES.get("mmsearch" if benchmark.startswith("mmsearch") else benchmark, {})
    short = {"numerical analysis": "numerical", "other code": "other"}
    return shares.get(short.get(title, title))
