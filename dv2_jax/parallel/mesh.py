"""The device mesh, and the one table that says where each dimension of each array lies.

`data` and `fsdp` split the rows of a batch; `fsdp` also splits every weight, which is gathered where it is used;
`tensor` splits the heads and features of a layer, and its devices work on the same rows. `context`, which a mesh has only
where it is more than one device, splits the tokens and patches of a row; attention, which needs all of them, is split by
heads instead (Jacobs et al., arXiv:2309.14509).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from dv2_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # mesh axes of a batch's leading dimension
CONTEXT = "context"

# Logical name of a parameter's dimension -> mesh axis. None: every device holds all of it.
AXIS_RULES: dict[str, str | None] = {
    "layers": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "norm": None,
    "patch": None,
    "vision_embed": "fsdp",
    "vision_heads": "tensor",
    "vision_mlp": "tensor",
    "merged": "fsdp",
    "merged_mlp": "tensor",
}


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of all devices (or of `devices`, which may be those of a machine that is not here).

    At most one size may be -1: the devices that the others leave. Raises ConfigError when the sizes do not use
    every device exactly once.
    """
    devices = jax.devices() if devices is None else list(devices)
    axes = AXES if config.context == 1 else (*ROWS, CONTEXT, "tensor")
    sizes = [getattr(config, name) for name in axes]
    written = ", ".join(f"mesh.{name}={size}" for name, size in zip(axes, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ConfigError(f"{written}: sizes are at least 1, and at most one is -1 (what the others leave)")
    known = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise ConfigError(f"{written}: does not divide {len(devices)} devices; set one of them to -1")
    return _arranged(axes, sizes, devices)


def _arranged(axes: Sequence[str], sizes: Sequence[int], devices: Sequence[Any]) -> Mesh:
    """The mesh in the order of the slice's links; host by host where that order is not known, or would lay the devices
    of a row, which send most, over more hosts than it needs."""
    kinds = (AxisType.Auto,) * len(axes)
    try:
        mesh = jax.make_mesh(sizes, axes, axis_types=kinds, devices=devices)
    except NotImplementedError as error:
        warnings.warn(
            f"the mesh {tuple(sizes)} is laid out host by host, not along the slice's links: {error}", stacklevel=3
        )
    else:
        groups = mesh.devices.reshape(math.prod(sizes[:2]), -1)
        if all(len({device.process_index for device in group}) == 1 for group in groups):
            return mesh
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(sizes), axes, axis_types=kinds)


def device_mesh(config: MeshConfig) -> Mesh | None:
    """As ``make_mesh``, of all devices that are here; None where that is one, which needs no placing."""
    mesh = make_mesh(config)
    return mesh if mesh.size > 1 else None


def param_shardings(mesh: Mesh, logical_axes: Mapping[str, tuple[str | None, ...]]) -> dict[str, NamedSharding]:
    """Where each parameter lies. Raises KeyError for a dimension that AXIS_RULES does not name."""

    def axis(parameter: str, name: str | None) -> str | None:
        if name is not None and name not in AXIS_RULES:
            raise KeyError(f"{parameter}: no rule for the logical axis {name!r}; add it to parallel.mesh.AXIS_RULES")
        return None if name is None else AXIS_RULES[name]

    return {
        parameter: NamedSharding(mesh, PartitionSpec(*(axis(parameter, name) for name in names)))
        for parameter, names in logical_axes.items()
    }


def check_divisible(shapes: Mapping[str, tuple[int, ...]], shardings: Mapping[str, NamedSharding]) -> None:
    """Raises ConfigError for a parameter whose dimension its mesh axis does not divide."""
    for name, shape in shapes.items():
        sizes = shardings[name].mesh.shape
        for size, axis in zip(shape, shardings[name].spec, strict=False):
            if axis is not None and size % sizes[axis]:
                raise ConfigError(
                    f"mesh.{axis}={sizes[axis]} does not divide a dimension of {size} of {name} {shape};"
                    f" choose a divisor of {size}"
                )


def widest_tensor(
    params: Mapping[str, jax.ShapeDtypeStruct], logical_axes: Mapping[str, tuple[str | None, ...]]
) -> int:
    """The largest `mesh.tensor` that divides every dimension which it would split."""
    named = [pair for name, param in params.items() for pair in zip(param.shape, logical_axes[name], strict=True)]
    return math.gcd(*(size for size, axis in named if axis is not None and AXIS_RULES[axis] == "tensor"))


def under(mesh: Mesh | None) -> AbstractContextManager:
    """Trace and run under `mesh`: what asks for the current mesh (a kernel, `split_rows`) then finds it."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def traced_platform() -> str:
    """What kind of device the program that is being traced is for: those of the current mesh, which may be devices that
    are not here."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def row_axes() -> tuple[str, ...] | None:
    """Mesh axes that split rows, under the current mesh; None without one."""
    return None if jax.sharding.get_abstract_mesh().empty else ROWS


def row_shards() -> int:
    """Over how many devices rows are split under the current mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in ROWS)


def context_shards() -> int:
    """Over how many devices the tokens of a row are split under the current mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(CONTEXT, 1)


def split_rows(x: Array) -> Array:
    """Keeps the leading dimension of an activation split over the devices of its rows, its tokens over those of
    `context`, and nothing else split.

    Left to itself the compiler may split features instead, because the weights lie split by features: it then sends
    activations, which are larger than weights. Raises ConfigError where `context` does not divide the tokens.
    """
    if row_axes() is None:
        return x
    if (parts := context_shards()) == 1:
        return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS))
    if x.shape[1] % parts:
        raise ConfigError(f"mesh.context={parts} does not divide rows of {x.shape[1]} tokens; choose a divisor")
    return jax.lax.with_sharding_constraint(x, PartitionSpec(ROWS, CONTEXT))


def split_patches(x: Array) -> Array:
    """Keeps an activation of pictures, [rows patches ...] or [patches ...], split over the devices of `context` by the
    first of its dimensions that they divide, and by nothing else. Under ``vmap(..., spmd_axis_name=ROWS)`` that leaves
    it split by the mapped dimension as well; for the reason of `split_rows`."""
    return _constrained(x, *patch_axes(x.shape, context_shards()))


def patch_axes(shape: Sequence[int], context: int) -> tuple[str | None, ...]:
    """By which mesh axis each dimension of what pictures have is split, among ``context`` devices."""
    dimension = next((n for n, size in enumerate(shape[:-1]) if size % context == 0), None) if context > 1 else None
    return tuple(CONTEXT if n == dimension else None for n in range(len(shape)))


def whole_patches(x: Array) -> Array:
    """All of it on every device of `context`: for moving rows, of which each may go anywhere."""
    return x if context_shards() == 1 else _constrained(x, *[None] * x.ndim)


def rows_by_context(x: Array) -> Array:
    """[B T ...] as [B * context, T / context, ...]: what each device of `context` has of a row, as a row of its own."""
    parts = context_shards()
    if parts == 1:
        return x
    x = x.reshape(x.shape[0] * parts, x.shape[1] // parts, *x.shape[2:])
    return jax.lax.with_sharding_constraint(x, PartitionSpec((*ROWS, CONTEXT)))


def _constrained(x: Array, *axes: str | None) -> Array:
    return x if row_axes() is None else jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def gathered_beside(x: Array, weight: Array, *axes: str | None) -> tuple[Array, Array]:
    """An activation, and a weight with logical `axes` whole on every device of `data` and `fsdp`: for a loop over parts
    of the activation that uses the weight each time.

    Backwards the weight's gradient is summed and split again before the activation's is passed on. Left to itself the
    compiler puts that off to the end, and keeps the whole gradient while it differentiates everything that came before.
    """
    return (x, weight) if row_axes() is None else _gathered_beside(axes, x, weight)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gathered_beside(axes: tuple[str | None, ...], x: Array, weight: Array) -> tuple[Array, Array]:
    return x, _whole(axes, weight)


def _whole(axes, weight):
    kept = (axis if axis not in ROWS else None for axis in _mesh_axes(axes))
    return jax.lax.with_sharding_constraint(weight, PartitionSpec(*kept))


def _gather_forward(axes, x, weight):
    return _gathered_beside(axes, x, weight), None


def _gather_backward(axes, _, gradients):
    x, weight = gradients[0], _whole(axes, gradients[1])
    return jax.lax.optimization_barrier((x, jax.lax.with_sharding_constraint(weight, PartitionSpec(*_mesh_axes(axes)))))


_gathered_beside.defvjp(_gather_forward, _gather_backward)


def _mesh_axes(axes: tuple[str | None, ...]) -> list[str | None]:
    return [None if name is None else AXIS_RULES[name] for name in axes]
