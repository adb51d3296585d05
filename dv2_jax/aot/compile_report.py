"""What programs compiled ahead of time need and take, as people read it: one row each, and one optimizer step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dv2_jax.aot.compile import Compiled
from dv2_jax.aot.hlo_cost import Costs
from dv2_jax.aot.roofline import GIB, Chip, Seconds

HEAD = [
    *("program", "shape", "fits", "arguments", "temporaries", "peak", "beside"),
    *("TFLOP", "HBM GB", "sent GiB", "at best s", "bound", "MFU", "in turn", "compile s"),
]
LEGEND = (
    "Per device; memory in GiB. `beside`: what the run holds besides the program's arguments. `TFLOP`: matrix products and"
    " attention, loops multiplied out, recomputation included. `HBM GB`: bytes between core and HBM. `sent`: bytes that"
    " leave the device in a ring. `at best s`: the longest of arithmetic, HBM and links at their published peaks, and"
    " which (`bound`); `MFU`: what the model's mathematics asks for, without recomputation, in that time; `in turn`: MFU if"
    " the three did not overlap."
)


@dataclass(frozen=True)
class Row:
    """One program on one kind of device."""

    name: str
    shape: str
    compiled: Compiled
    chip: Chip
    beside: int = 0  # bytes per device that the run holds besides the arguments
    useful: float = 0.0  # operations per device that the model's mathematics asks for
    repeats: int = 0  # runs in one optimizer step

    @property
    def fits(self) -> bool:
        return not self.compiled.error and self.compiled.needs + self.beside <= self.chip.memory

    @property
    def seconds(self) -> Seconds | None:
        """None: not compiled, or its text cannot be read."""
        return None if self.compiled.costs is None else Seconds.of(self.compiled.costs, self.chip)

    def cells(self) -> list[str]:
        done, costs = self.compiled, self.compiled.costs
        first = [self.name, self.shape, "yes" if self.fits else "**no**"]
        if done.error:
            return [*first, "", "", "", gib(self.beside), *[""] * 7, done.error.replace("|", "\\|")]
        sizes = [gib(size) for size in (done.arguments, done.temporaries, done.peak, self.beside)]
        work = ["?"] * 3
        if costs is not None:
            more = "+" if costs.unknown_loops else ""
            work = [f"{number(costs.flops / 1e12)}{more}", f"{number(costs.traffic / 1e9)}{more}", sent(costs)]
        return [*first, *sizes, *work, *_times(self.seconds, self.useful, self.chip), f"{done.seconds:.0f}"]

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "fits": self.fits}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Row:
        """What `to_dict` wrote."""
        fields = {name: value for name, value in document.items() if name != "fits"}
        compiled = dict(fields.pop("compiled"))
        costs = compiled.pop("costs")
        compiled = Compiled(**compiled, costs=None if costs is None else Costs(**costs))
        return cls(**{**fields, "compiled": compiled, "chip": Chip(**fields["chip"])})


def table(rows: Sequence[Row]) -> str:
    """A Markdown table, aligned so that it reads as it is too; below the programs an optimizer step, if it is among them."""
    lines = [HEAD, *(row.cells() for row in rows)]
    if step := step_cells(rows):
        lines.append(step)
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def step_cells(rows: Sequence[Row]) -> list[str] | None:
    """An optimizer step: every program as often as it runs in one. None where its programs are not all there."""
    parts = [row for row in rows if row.repeats]
    if len(parts) < 2 or any(row.seconds is None for row in parts):
        return None
    total = sum((row.seconds * row.repeats for row in parts), Seconds(0.0, 0.0, 0.0))
    useful = sum(row.useful * row.repeats for row in parts)
    costs = Costs()
    for row in parts:
        costs.add(row.compiled.costs, row.repeats)
    shape = " + ".join(f"{row.repeats} × {row.name.split()[-1]}" for row in parts)
    fits = "yes" if all(row.fits for row in parts) else "**no**"
    work = [number(costs.flops / 1e12), number(costs.traffic / 1e9), gib(costs.bytes_sent)]
    return ["**step**", shape, fits, "", "", "", "", *work, *_times(total, useful, parts[0].chip), ""]


def _times(seconds: Seconds | None, useful: float, chip: Chip) -> list[str]:
    if seconds is None:
        return ["?"] * 4
    shares = [f"{useful / chip.flops / s:.0%}" if useful and s else "" for s in (seconds.at_best, seconds.in_turn)]
    return [number(seconds.at_best), seconds.bound, *shares]


def number(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 or not value else f"{value:.2g}"


def gib(size: float) -> str:
    return number(size / GIB)


def sent(costs: Costs) -> str:
    """By kind: GiB, calls, and the largest call."""
    parts = [
        f"{kind} {gib(size)} in {costs.calls[kind]:,} of ≤ {number(costs.largest[kind] / 2**20)} MiB"
        for kind, size in sorted(costs.sent.items(), key=lambda x: -x[1])
        if size
    ]
    return gib(costs.bytes_sent) + (f" ({', '.join(parts)})" if parts else "")
