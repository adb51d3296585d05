"""What a TPU can do at best, and how long a compiled program takes at least by it.

Arithmetic, HBM and links work side by side on a TPU; a program takes at least as long as the busiest of them
(``at_best``), and about their sum when nothing overlaps (``in_turn``). Neither is a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dv2_jax.aot.hlo_cost import Costs

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Of one device as JAX counts them. A tpu7x chip is two devices, and so is a v4 chip in a described topology."""

    memory: float  # bytes that the compiler may plan with, as libtpu states them when a program is too large
    flops: float  # bf16 operations per second
    hbm: float  # bytes per second
    links: float  # bytes per second that a ring along one axis of the torus sends, both directions together


# Published peaks: cloud.google.com/tpu/docs (v5e, v5p, v6e, tpu7x); links: 45 GB/s (v4, v5e) or 90 GB/s each way.
CHIPS = {
    "TPU v4": Chip(15.25 * GIB, 137.5e12, 0.614e12, 45e9),
    "TPU v5 lite": Chip(15.75 * GIB, 197e12, 0.819e12, 90e9),
    "TPU v5": Chip(95.74 * GIB, 459e12, 2.765e12, 180e9),
    "TPU v6 lite": Chip(31.25 * GIB, 918e12, 1.64e12, 180e9),
    "TPU7x": Chip(94.75 * GIB, 1153.5e12, 3.69e12, 90e9),
}


def chip_of(device: Any) -> Chip:
    """Raises KeyError for a kind whose peaks are not listed."""
    if device.device_kind not in CHIPS:
        raise KeyError(
            f"no peaks for {device.device_kind!r}; add it to parallel.roofline.CHIPS (there: {', '.join(CHIPS)})"
        )
    return CHIPS[device.device_kind]


@dataclass(frozen=True)
class Seconds:
    """Of one run on one device."""

    arithmetic: float
    memory: float
    links: float

    @classmethod
    def of(cls, costs: Costs, chip: Chip) -> Seconds:
        return cls(costs.flops / chip.flops, costs.traffic / chip.hbm, costs.bytes_sent / chip.links)

    @property
    def at_best(self) -> float:
        return max(self.arithmetic, self.memory, self.links)

    @property
    def in_turn(self) -> float:
        return self.arithmetic + self.memory + self.links

    @property
    def bound(self) -> str:
        """Which of the three is the busiest."""
        return max(("arithmetic", "memory", "links"), key=lambda name: getattr(self, name))

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.arithmetic + other.arithmetic, self.memory + other.memory, self.links + other.links)

    def __mul__(self, times: int) -> Seconds:
        return Seconds(self.arithmetic * times, self.memory * times, self.links * times)
