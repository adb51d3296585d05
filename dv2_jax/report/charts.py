"""Draws line charts as inline SVG, colored by the page's style sheet (classes `s0` ... `s5`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 28

NUM_COLORS = 6  # classes s0 to s5 of the style sheet


@dataclass(frozen=True)
class Series:
    """One line of a chart: `x` and `y` of equal length; points that are not finite are left out.

    `spread`, if given, is the half width of a band around the line, such as a standard deviation.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()


def line_chart(title: str, series: Sequence[Series], *, percent: bool = False, note: str = "") -> str:
    """Returns a `<figure>` with the raw points faint, a running mean on top, and a tooltip for each point."""
    finite = [(x, y) for line in series for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    if not finite:
        return ""
    x_ticks = ticks(min(x for x, _ in finite), max(x for x, _ in finite), integers=True)
    edges = [y + sign * half for line in series for _, y, half in _band(line) for sign in (-1, 1)]
    y_values = [*(y for _, y in finite), *edges]
    y_ticks = ticks(min(y_values), max(y_values))
    to_x = _scale(x_ticks, [x for x, _ in finite], LEFT, WIDTH - RIGHT)
    to_y = _scale(y_ticks, y_values, HEIGHT - BOTTOM, TOP)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for y in y_ticks:
        label = f"{y:.0%}" if percent else f"{y:g}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{to_y(y):.1f}" y2="{to_y(y):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{to_y(y) + 3.5:.1f}" text-anchor="end">{label}</text>')
    for x in x_ticks:
        parts.append(f'<text class="tick" x="{to_x(x):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{x:g}</text>')
    for index, line in enumerate(series):
        if band := _band(line):
            upper = [(x, y + half) for x, y, half in band]
            lower = [(x, y - half) for x, y, half in reversed(band)]
            corners = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in [*upper, *lower])
            parts.append(f'<polygon class="band s{index % NUM_COLORS}" points="{corners}"></polygon>')
        points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        faint = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in points)
        means = running_mean([y for _, y in points])
        bold = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for (x, _), y in zip(points, means, strict=True))
        if len(series) <= 3:  # more raw lines would hide the means
            parts.append(f'<polyline class="raw s{index % NUM_COLORS}" points="{faint}"/>')
        parts.append(f'<polyline class="mean s{index % NUM_COLORS}" points="{bold}"/>')
        for x, y in points:
            shown = f"{y:.1%}" if percent else f"{y:.4g}"
            tip = escape(f"{line.label} at step {x:g}: {shown}")
            parts.append(f'<circle class="dot s{index % NUM_COLORS}" cx="{to_x(x):.1f}" cy="{to_y(y):.1f}" r="5">')
            parts.append(f"<title>{tip}</title></circle>")
    parts.append("</svg>")
    legend = "".join(
        f'<span class="key s{i % NUM_COLORS}">{escape(line.label)}</span>' for i, line in enumerate(series)
    )
    caption = f'<span class="note">{escape(note)}</span>' if note else ""
    heading = f"<figcaption><b>{escape(title)}</b>{legend if len(series) > 1 else ''}{caption}</figcaption>"
    return f'<figure class="chart">{heading}{"".join(parts)}</figure>'


def _band(line: Series) -> list[tuple[float, float, float]]:
    """Returns (x, y, half width) of the finite points of a line with a band."""
    if not line.spread:
        return []
    points = zip(line.x, line.y, line.spread, strict=True)
    return [(x, y, half) for x, y, half in points if math.isfinite(y) and math.isfinite(half)]


def ticks(low: float, high: float, *, integers: bool = False, wanted: int = 5) -> list[float]:
    """Returns about `wanted` round numbers that cover [low, high]; with `integers`, only integers inside it."""
    if low == high:
        half = 0.5 * abs(low) if low else 0.5
        low, high = (low, low + 1) if integers else (low - half, high + half)
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    if integers:
        step = max(1.0, math.ceil(step))
        first, last = math.ceil(low / step), math.floor(high / step)
    else:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _scale(ticks_: Sequence[float], values: Sequence[float], start: float, end: float):
    low, high = min([*ticks_, *values]), max([*ticks_, *values])
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def running_mean(values: Sequence[float], half_life: float = 3.0) -> list[float]:
    """Computes the bias-corrected exponential moving average; `half_life` is in points."""
    decay = 0.5 ** (1 / half_life)
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1.0
        means.append(total / weight)
    return means
