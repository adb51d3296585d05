"""The device mesh, and the table that maps logical axes of arrays to mesh axes.

`data` and `fsdp` shard the batch; `fsdp` also shards every weight, which is all-gathered at use. `tensor` shards the heads
and features of a layer (tensor parallelism). `context`, present only if larger than 1, shards the tokens and patches of a
row; attention needs all of them and is sharded by heads instead (Ulysses sequence parallelism, Jacobs et al.,
arXiv:2309.14509).
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
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from dv2_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # mesh axes of a batch's leading dimension
CONTEXT = "context"

# Logical axis of a parameter -> mesh axis. None: replicated.
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
    """Creates the mesh of all devices, or of `devices`, which may be described devices for ahead-of-time compilation.

    At most one size may be -1, which means all remaining devices. Raises ConfigError if the product of the sizes is not
    the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    axes = AXES if config.context == 1 else (*BATCH_AXES, CONTEXT, "tensor")
    sizes = [getattr(config, name) for name in axes]
    description = ", ".join(f"mesh.{name}={size}" for name, size in zip(axes, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ConfigError(f"{description}: sizes are at least 1, and at most one is -1 (all remaining devices)")
    known = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != len(devices):
        raise ConfigError(f"{description}: does not divide {len(devices)} devices; set one of them to -1")
    return _mesh_in_topology_order(axes, sizes, devices)


def _mesh_in_topology_order(axes: Sequence[str], sizes: Sequence[int], devices: Sequence[Any]) -> Mesh:
    """Creates a mesh in the order of the slice's ICI topology.

    Falls back to host-major order if the topology is unknown or if `jax.make_mesh` would spread one tensor/context group,
    which communicates most, over several hosts.
    """
    axis_types = (AxisType.Auto,) * len(axes)
    try:
        mesh = jax.make_mesh(sizes, axes, axis_types=axis_types, devices=devices)
    except NotImplementedError as error:
        warnings.warn(
            f"the mesh {tuple(sizes)} is in host-major order, not in the order of the slice's topology: {error}",
            stacklevel=3,
        )
    else:
        groups = mesh.devices.reshape(math.prod(sizes[:2]), -1)
        if all(len({device.process_index for device in group}) == 1 for group in groups):
            return mesh
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(sizes), axes, axis_types=axis_types)


def device_mesh(config: MeshConfig) -> Mesh | None:
    """Creates the mesh of all attached devices (`make_mesh`), or returns None if there is only one."""
    mesh = make_mesh(config)
    return mesh if mesh.size > 1 else None


def param_shardings(mesh: Mesh, logical_axes: Mapping[str, tuple[str | None, ...]]) -> dict[str, NamedSharding]:
    """Returns the sharding of each parameter. Raises KeyError for a logical axis that is not in AXIS_RULES."""

    def axis(parameter: str, name: str | None) -> str | None:
        if name is not None and name not in AXIS_RULES:
            raise KeyError(f"{parameter}: no rule for the logical axis {name!r}; add it to parallel.mesh.AXIS_RULES")
        return None if name is None else AXIS_RULES[name]

    return {
        parameter: NamedSharding(mesh, PartitionSpec(*(axis(parameter, name) for name in names)))
        for parameter, names in logical_axes.items()
    }


def check_divisible(shapes: Mapping[str, tuple[int, ...]], shardings: Mapping[str, NamedSharding]) -> None:
    """Raises ConfigError if a mesh axis does not divide the dimension of a parameter that it shards."""
    for name, shape in shapes.items():
        sizes = shardings[name].mesh.shape
        for size, axis in zip(shape, shardings[name].spec, strict=False):
            if axis is not None and size % sizes[axis]:
                raise ConfigError(
                    f"mesh.{axis}={sizes[axis]} does not divide a dimension of {size} of {name} {shape};"
                    f" choose a divisor of {size}"
                )


def max_tensor_parallelism(
    params: Mapping[str, jax.ShapeDtypeStruct], logical_axes: Mapping[str, tuple[str | None, ...]]
) -> int:
    """Returns the largest `mesh.tensor` that divides every dimension that it would shard."""
    named = [pair for name, param in params.items() for pair in zip(param.shape, logical_axes[name], strict=True)]
    return math.gcd(*(size for size, axis in named if axis is not None and AXIS_RULES[axis] == "tensor"))


def use_mesh(mesh: Mesh | None) -> AbstractContextManager:
    """Sets the current mesh, which kernels and sharding constraints read while tracing; does nothing for None."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def traced_platform() -> str:
    """Returns the platform of the current mesh, which may consist of described devices; the default backend without one."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def batch_axes() -> tuple[str, ...] | None:
    """Returns the mesh axes that shard the batch, or None without a current mesh."""
    return None if jax.sharding.get_abstract_mesh().empty else BATCH_AXES


def num_data_shards(mesh: Mesh | AbstractMesh | None) -> int:
    """Returns the data-parallel size of `mesh` (data x fsdp): the number of shards of a batch's leading dimension."""
    return 1 if mesh is None or mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def data_parallel_size() -> int:
    """Returns the data-parallel size of the current mesh."""
    return num_data_shards(jax.sharding.get_abstract_mesh())


def context_parallel_size() -> int:
    """Returns the number of shards of the token axis of the current mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(CONTEXT, 1)


def constrain_batch(x: Array) -> Array:
    """Constrains an activation [B T ...] to be sharded by `data` and `fsdp` over B, by `context` over T, and by nothing else.

    Otherwise XLA may propagate the feature sharding of the FSDP weights to activations, and communicate activations, which
    are larger than weights. Raises ConfigError if `context` does not divide T.
    """
    if batch_axes() is None:
        return x
    if (parts := context_parallel_size()) == 1:
        return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))
    if x.shape[1] % parts:
        raise ConfigError(f"mesh.context={parts} does not divide rows of {x.shape[1]} tokens; choose a divisor")
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES, CONTEXT))


def constrain_patches(x: Array) -> Array:
    """Constrains an image activation, [rows patches ...] or [patches ...], to be sharded by `context` only, over the first
    dimension that it divides.

    Under `vmap(..., spmd_axis_name=BATCH_AXES)` the mapped dimension stays sharded as well. The reason is that of
    `constrain_batch`.
    """
    return _constrained(x, *patch_axes(x.shape, context_parallel_size()))


def patch_axes(shape: Sequence[int], context: int) -> tuple[str | None, ...]:
    """Returns the mesh axis of each dimension of an image array that `context` devices share."""
    dimension = next((n for n, size in enumerate(shape[:-1]) if size % context == 0), None) if context > 1 else None
    return tuple(CONTEXT if n == dimension else None for n in range(len(shape)))


def replicate_patches(x: Array) -> Array:
    """Constrains an array to be replicated over `context`, for permutations, where each row may move to any shard."""
    return x if context_parallel_size() == 1 else _constrained(x, *[None] * x.ndim)


def fold_context_into_batch(x: Array) -> Array:
    """Reshapes [B T ...] to [B * context, T / context, ...]: each `context` shard of a row becomes a row."""
    parts = context_parallel_size()
    if parts == 1:
        return x
    x = x.reshape(x.shape[0] * parts, x.shape[1] // parts, *x.shape[2:])
    return jax.lax.with_sharding_constraint(x, PartitionSpec((*BATCH_AXES, CONTEXT)))


def _constrained(x: Array, *axes: str | None) -> Array:
    return x if batch_axes() is None else jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def all_gather_weight_for_loop(x: Array, weight: Array, *axes: str | None) -> tuple[Array, Array]:
    """All-gathers `weight`, of logical `axes`, over the data axes once, for a loop over activation chunks.

    Its gradient is reduce-scattered before the activation's is propagated. Otherwise XLA delays the reduce-scatter to the
    end, and the full gradient stays resident during the remaining backward pass. Returns x and the gathered weight.
    """
    return (x, weight) if batch_axes() is None else _gather_for_loop(axes, x, weight)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather_for_loop(axes: tuple[str | None, ...], x: Array, weight: Array) -> tuple[Array, Array]:
    return x, _without_batch_axes(axes, weight)


def _without_batch_axes(axes, weight):
    model_axes = (axis if axis not in BATCH_AXES else None for axis in _mesh_axes(axes))
    return jax.lax.with_sharding_constraint(weight, PartitionSpec(*model_axes))


def _gather_forward(axes, x, weight):
    return _gather_for_loop(axes, x, weight), None


def _gather_backward(axes, _, gradients):
    x, weight = gradients[0], _without_batch_axes(axes, gradients[1])
    return jax.lax.optimization_barrier((x, jax.lax.with_sharding_constraint(weight, PartitionSpec(*_mesh_axes(axes)))))


_gather_for_loop.defvjp(_gather_forward, _gather_backward)


def _mesh_axes(axes: tuple[str | None, ...]) -> list[str | None]:
    return [None if name is None else AXIS_RULES[name] for name in axes]
