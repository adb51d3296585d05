"""Published peaks of TPUs, and lower bounds on the run time of a compiled program (roofline model).

Compute, HBM and ICI work in parallel on a TPU; a program takes at least as long as the busiest of them (`roofline_time`),
and about their sum if nothing overlaps (`serial_time`). Neither is a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dv2_jax.aot.hlo_cost import Costs

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Peaks of one JAX device. A tpu7x chip is two devices, and so is a v4 chip in a described topology."""

    memory: float  # bytes available to the compiler, as libtpu reports them for a program that exceeds them
    flops: float  # peak bf16 FLOP/s
    hbm_bandwidth: float  # bytes/s
    ici_bandwidth: float  # bytes/s of a ring along one torus axis, both directions together


# Published peaks: cloud.google.com/tpu/docs (v5e, v5p, v6e, tpu7x); ICI: 45 GB/s (v4, v5e) or 90 GB/s each way.
CHIPS = {
    "TPU v4": Chip(15.25 * GIB, 137.5e12, 0.614e12, 45e9),
    "TPU v5 lite": Chip(15.75 * GIB, 197e12, 0.819e12, 90e9),
    "TPU v5": Chip(95.74 * GIB, 459e12, 2.765e12, 180e9),
    "TPU v6 lite": Chip(31.25 * GIB, 918e12, 1.64e12, 180e9),
    "TPU7x": Chip(94.75 * GIB, 1153.5e12, 3.69e12, 90e9),
}


def chip_of(device: Any) -> Chip:
    """Returns the peaks of a device. Raises KeyError if its kind is not listed."""
    if device.device_kind not in CHIPS:
        raise KeyError(f"no peaks for {device.device_kind!r}; add it to aot.roofline.CHIPS (known: {', '.join(CHIPS)})")
    return CHIPS[device.device_kind]


@dataclass(frozen=True)
class RooflineTimes:
    """Seconds that compute, HBM and ICI each take for one run on one device at their peaks."""

    compute: float
    hbm: float
    ici: float

    @classmethod
    def from_costs(cls, costs: Costs, chip: Chip) -> RooflineTimes:
        return cls(
            costs.flops / chip.flops,
            costs.hbm_bytes / chip.hbm_bandwidth,
            costs.total_collective_bytes / chip.ici_bandwidth,
        )

    @property
    def roofline_time(self) -> float:
        """Seconds if compute, HBM and ICI overlap fully."""
        return max(self.compute, self.hbm, self.ici)

    @property
    def serial_time(self) -> float:
        """Seconds if nothing overlaps."""
        return self.compute + self.hbm + self.ici

    @property
    def bound(self) -> str:
        """Returns the busiest of the three: compute, hbm or ici."""
        return max(("compute", "hbm", "ici"), key=lambda name: getattr(self, name))

    def __add__(self, other: RooflineTimes) -> RooflineTimes:
        return RooflineTimes(self.compute + other.compute, self.hbm + other.hbm, self.ici + other.ici)

    def __mul__(self, times: int) -> RooflineTimes:
        return RooflineTimes(self.compute * times, self.hbm * times, self.ici * times)
