"""The training state (parameters, optimizer state, step) and the sharding of each of its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int

from dv2_jax.model.params import Params


@jax.tree_util.register_dataclass  # every field is a child of the pytree
@dataclass(frozen=True)
class TrainState:
    """The pytree that a train step maps to its successor; its buffers are donated."""

    params: Mapping[str, Any]  # arrays; in descriptions of a state abstract arrays, or shardings
    opt_state: Any  # optimizer state of the trainable parameters only
    step: Int[Any, ""]  # number of optimizer steps taken


def split_params(params: Params, trainable: tuple[str, ...]) -> tuple[Params, Params]:
    """Split a flat parameter dict into its trainable and its frozen part."""
    chosen = set(trainable)
    return {n: params[n] for n in trainable}, {n: p for n, p in params.items() if n not in chosen}


def init_state(params: Params, optimizer: optax.GradientTransformation, trainable: tuple[str, ...]) -> TrainState:
    """Build the state of step 0; the optimizer's moments inherit the shardings of their parameters."""
    params = commit(params)
    trainable_params, _ = split_params(params, trainable)
    param_shardings = {name: p.sharding for name, p in trainable_params.items()}
    shardings = opt_state_shardings(jax.eval_shape(optimizer.init, trainable_params), param_shardings)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings)(trainable_params)
    return TrainState(params=params, opt_state=opt_state, step=step_counter(0, params))


def abstract_state(
    params: Mapping[str, jax.ShapeDtypeStruct], optimizer: optax.GradientTransformation, trainable: tuple[str, ...]
) -> TrainState:
    """Build the abstract training state: shapes, dtypes and shardings of every array.

    `params` are abstract parameters with their shardings, or all without any on a single device.
    """
    params = dict(params)
    opt_state = jax.eval_shape(optimizer.init, split_params(params, trainable)[0])
    step = jax.ShapeDtypeStruct((), jnp.int32)
    if next(iter(params.values())).sharding is None:
        return TrainState(params, opt_state, step)
    shardings = state_shardings(opt_state, {name: p.sharding for name, p in params.items()})

    def with_sharding(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    opt_state = jax.tree.map(with_sharding, opt_state, shardings.opt_state)
    return TrainState(params, opt_state, with_sharding(step, shardings.step))


def commit(tree: Any) -> Any:
    """Commit every array to its current sharding.

    jit compiles separately for committed and uncommitted inputs, and a step's outputs are committed: with uncommitted
    initial parameters the second step would recompile.
    """
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding), tree)


def step_counter(done: int, params: Params) -> Int[Array, ""]:
    """Return the step count as a scalar array, replicated over the devices of the parameters."""
    return jax.device_put(np.int32(done), replicated_like(next(iter(params.values())).sharding))


def replicated_like(sharding: Sharding) -> Sharding:
    """Return the sharding that replicates an array over the devices of `sharding`."""
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding


def opt_state_shardings(opt_state: Any, param_shardings: Mapping[str, Sharding]) -> Any:
    """Return the shardings of an optimizer state.

    Leaves keyed by a parameter name inherit its sharding; all others are replicated.
    """
    replicated = replicated_like(next(iter(param_shardings.values())))

    def leaf_sharding(path, _leaf):
        return param_shardings.get(getattr(path[-1], "key", ""), replicated)

    return jax.tree_util.tree_map_with_path(leaf_sharding, opt_state)


def state_shardings(opt_state: Any, param_shardings: Mapping[str, Sharding]) -> TrainState:
    """Return the sharding of every leaf of a state; `opt_state` may be abstract."""
    return TrainState(
        params=dict(param_shardings),
        opt_state=opt_state_shardings(opt_state, param_shardings),
        step=replicated_like(next(iter(param_shardings.values()))),
    )
