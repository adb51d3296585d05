"""Shardings of the engine's KV cache and dispatch arrays on a mesh."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dv2_jax.parallel.mesh import BATCH_AXES

T = TypeVar("T")


@dataclass(frozen=True)
class EngineSharding:
    """Shardings of the arrays of a dispatch; all None on a single device."""

    pages: NamedSharding | None = None
    rows: NamedSharding | None = None  # batch dimension first, sharded over the data-parallel axes
    batch_by_token: NamedSharding | None = None  # [3, rows, tokens]
    replicated: NamedSharding | None = None  # on every device of the mesh

    @classmethod
    def for_mesh(cls, mesh: Mesh | None, kv_heads: int) -> EngineSharding:
        """Shards rows and their pages over `data` and `fsdp`, and KV heads over `tensor`.

        Heads are replicated over `tensor` if it does not divide their number.
        """
        if mesh is None or mesh.size == 1:
            return cls()
        heads = "tensor" if kv_heads % mesh.shape["tensor"] == 0 else None
        return cls(
            pages=NamedSharding(mesh, PartitionSpec(None, BATCH_AXES, None, heads)),
            rows=NamedSharding(mesh, PartitionSpec(BATCH_AXES)),
            batch_by_token=NamedSharding(mesh, PartitionSpec(None, BATCH_AXES)),
            replicated=NamedSharding(mesh, PartitionSpec()),
        )

    def device_put_batch(self, batch: Any) -> Any:
        """Puts the numpy arrays of a batch (a dataclass) on their devices; a no-op on a single device, where jit transfers them."""
        if self.rows is None:
            return batch
        shardings = {f.name: self.batch_by_token if f.name == "positions" else self.rows for f in fields(batch)}
        arrays = {name: jax.device_put(getattr(batch, name), sharding) for name, sharding in shardings.items()}
        return replace(batch, **arrays)

    def replicate(self, x: T) -> T:
        """Replicates a pytree of arrays over the mesh."""
        return x if self.replicated is None else jax.device_put(x, self.replicated)

    def device_put_rows(self, *arrays: jax.typing.ArrayLike) -> list[jax.typing.ArrayLike]:
        """Puts arrays on their devices whose leading dimension is shards or rows."""
        return list(arrays) if self.rows is None else [jax.device_put(x, self.rows) for x in arrays]
