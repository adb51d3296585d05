"""Rolls out the same sequences on one device and on a mesh; run by `test_engine_on_mesh.py` with four devices."""

from __future__ import annotations

import jax
import numpy as np

from dv2_jax.config import MeshConfig
from dv2_jax.parallel.mesh import make_mesh
from tests.engine.small_world import make_world, roll_out

NAMES = [f"s{number}" for number in range(6)]


def main() -> None:
    world = make_world()
    alone = roll_out(world, world.engine(), NAMES, [0.0, 1.0])
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2))
    engine = world.engine(mesh=mesh, pages=400)
    rows = roll_out(world, engine, NAMES, [0.0, 1.0])
    gap = 0.0
    for name, (ids, _, _, logprobs) in rows.items():
        assert ids == alone[name][0], name
        gap = max(gap, float(np.abs(np.array(logprobs) - alone[name][3]).max()))
        engine.free_sequence(name)
    assert gap < 1e-4, gap
    assert engine.free_pages == 400
    print(f"equal on {dict(mesh.shape)}, {jax.device_count()} devices: largest gap {gap:.1e}")


if __name__ == "__main__":
    main()
