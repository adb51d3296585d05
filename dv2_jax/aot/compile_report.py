"""Markdown report of ahead-of-time compiled programs: memory, costs and roofline time of each and of an optimizer step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dv2_jax.aot.compile import Compiled
from dv2_jax.aot.hlo_cost import Costs
from dv2_jax.aot.roofline import GIB, Chip, RooflineTimes

HEAD = [
    *("program", "shape", "fits", "arguments", "temporaries", "peak", "resident"),
    *("TFLOP", "HBM GB", "ICI GiB", "roofline s", "bound", "MFU (overlap)", "MFU (serial)", "compile s"),
]
LEGEND = (
    "Per device; memory in GiB. `resident`: other live buffers of the run. `TFLOP`: matmuls and attention, loops multiplied"
    " out, rematerialization included. `HBM GB`: HBM traffic. `ICI GiB`: collective bytes that the device sends in a ring."
    " `roofline s`: the longest of compute, HBM and ICI time at published peaks, and which of them (`bound`). `MFU (overlap)`"
    " / `MFU (serial)`: model FLOPs utilization, without rematerialization, if compute, HBM and ICI time overlap fully / not"
    " at all."
)


@dataclass(frozen=True)
class Row:
    """The result of one program on one kind of device."""

    name: str
    shape: str
    compiled: Compiled
    chip: Chip
    resident_bytes: int = 0  # bytes per device of live buffers other than the arguments
    model_flops: float = 0.0  # model FLOPs per device, without rematerialization
    runs_per_step: int = 0  # runs per optimizer step

    @property
    def fits(self) -> bool:
        return not self.compiled.error and self.compiled.peak_memory + self.resident_bytes <= self.chip.memory

    @property
    def seconds(self) -> RooflineTimes | None:
        """Returns the roofline times, or None if the program was not compiled or its HLO text is not available."""
        return None if self.compiled.costs is None else RooflineTimes.from_costs(self.compiled.costs, self.chip)

    def cells(self) -> list[str]:
        """Returns the row's Markdown cells."""
        compiled, costs = self.compiled, self.compiled.costs
        first = [self.name, self.shape, "yes" if self.fits else "**no**"]
        if compiled.error:
            return [*first, "", "", "", gib(self.resident_bytes), *[""] * 7, compiled.error.replace("|", "\\|")]
        sizes = [gib(size) for size in (compiled.arguments, compiled.temporaries, compiled.peak, self.resident_bytes)]
        work = ["?"] * 3
        if costs is not None:
            more = "+" if costs.unknown_loops else ""
            work = [f"{number(costs.flops / 1e12)}{more}", f"{number(costs.hbm_bytes / 1e9)}{more}", collectives(costs)]
        return [*first, *sizes, *work, *_times(self.seconds, self.model_flops, self.chip), f"{compiled.seconds:.0f}"]

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "fits": self.fits}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Row:
        """Reads what `to_dict` wrote."""
        fields = {name: value for name, value in document.items() if name != "fits"}
        compiled = dict(fields.pop("compiled"))
        costs = compiled.pop("costs")
        compiled = Compiled(**compiled, costs=None if costs is None else Costs(**costs))
        return cls(**{**fields, "compiled": compiled, "chip": Chip(**fields["chip"])})


def table(rows: Sequence[Row]) -> str:
    """Returns an aligned Markdown table of the programs, and of an optimizer step if its programs are among them."""
    lines = [HEAD, *(row.cells() for row in rows)]
    if step := step_cells(rows):
        lines.append(step)
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


def step_cells(rows: Sequence[Row]) -> list[str] | None:
    """Returns the cells of an optimizer step, or None if not all of its programs were compiled."""
    parts = [row for row in rows if row.runs_per_step]
    if len(parts) < 2 or any(row.seconds is None for row in parts):
        return None
    total = sum((row.seconds * row.runs_per_step for row in parts), RooflineTimes(0.0, 0.0, 0.0))
    model_flops = sum(row.model_flops * row.runs_per_step for row in parts)
    costs = Costs()
    for row in parts:
        costs.add(row.compiled.costs, row.runs_per_step)
    shape = " + ".join(f"{row.runs_per_step} × {row.name.split()[-1]}" for row in parts)
    fits = "yes" if all(row.fits for row in parts) else "**no**"
    work = [number(costs.flops / 1e12), number(costs.hbm_bytes / 1e9), gib(costs.total_collective_bytes)]
    return ["**step**", shape, fits, "", "", "", "", *work, *_times(total, model_flops, parts[0].chip), ""]


def _times(seconds: RooflineTimes | None, model_flops: float, chip: Chip) -> list[str]:
    if seconds is None:
        return ["?"] * 4
    shares = [
        f"{model_flops / chip.flops / s:.0%}" if model_flops and s else ""
        for s in (seconds.roofline_time, seconds.serial_time)
    ]
    return [number(seconds.roofline_time), seconds.bound, *shares]


def number(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 or not value else f"{value:.2g}"


def gib(size: float) -> str:
    return number(size / GIB)


def collectives(costs: Costs) -> str:
    """Describes the collectives by kind: GiB, number of calls, and largest call."""
    parts = [
        f"{kind} {gib(size)} in {costs.calls[kind]:,} of ≤ {number(costs.largest[kind] / 2**20)} MiB"
        for kind, size in sorted(costs.collective_bytes.items(), key=lambda x: -x[1])
        if size
    ]
    return gib(costs.total_collective_bytes) + (f" ({', '.join(parts)})" if parts else "")
