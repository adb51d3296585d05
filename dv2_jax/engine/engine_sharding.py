"""Where the arrays of a dispatch lie on a mesh."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dv2_jax.parallel.mesh import ROWS

T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """Where the arrays of a dispatch lie; None: on one device."""

    pages: NamedSharding | None = None
    rows: NamedSharding | None = None  # rows first: split over the devices that split a batch
    grid: NamedSharding | None = None  # [3, rows, tokens]
    whole: NamedSharding | None = None  # on every device

    @classmethod
    def on(cls, mesh: Mesh | None, kv_heads: int) -> Placement:
        """Rows and their pages over ``data`` and ``fsdp``; heads over ``tensor`` where that divides them."""
        if mesh is None or mesh.size == 1:
            return cls()
        heads = "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None
        specs = (None, ROWS, None, heads), (ROWS,), (None, ROWS), ()
        return cls(*(NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs))

    def put(self, rows: T) -> T:
        """The arrays of a dispatch on their devices; on one device, left to the call."""
        if self.rows is None:
            return rows
        places = {f.name: self.grid if f.name == "positions" else self.rows for f in fields(rows)}
        return replace(rows, **{name: jax.device_put(getattr(rows, name), place) for name, place in places.items()})

    def put_whole(self, x: T) -> T:
        """A tree of arrays on every device."""
        return x if self.whole is None else jax.device_put(x, self.whole)

    def put_rows(self, *arrays: jax.typing.ArrayLike) -> list[jax.typing.ArrayLike]:
        """Arrays that lead with groups or rows."""
        return list(arrays) if self.rows is None else [jax.device_put(x, self.rows) for x in arrays]


def groups_of(mesh: Mesh | None) -> int:
    """Groups of rows that have their own devices."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
