"""What training carries from step to step, and where each array of it lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int

Params = dict[str, Array]  # flat: dotted name to array, layers stacked


@partial(jax.tree_util.register_dataclass, data_fields=["params", "opt_state", "step"], meta_fields=[])
@dataclass(frozen=True)
class TrainState:
    params: Params
    opt_state: Any  # of the trainable parameters only
    step: Int[Array, ""]  # optimiser steps done


def split_params(params: Params, trainable: tuple[str, ...]) -> tuple[Params, Params]:
    """(trainable, frozen) parts of a flat parameter dict."""
    chosen = set(trainable)
    return {n: params[n] for n in trainable}, {n: p for n, p in params.items() if n not in chosen}


def init_state(params: Params, optimizer: optax.GradientTransformation, trainable: tuple[str, ...]) -> TrainState:
    """A fresh state around `params`, whose placement the optimiser's moments follow."""
    learn, _ = split_params(params, trainable)
    shardings = {name: getattr(p, "sharding", None) for name, p in learn.items()}
    placed = all(isinstance(s, NamedSharding) for s in shardings.values())
    make = jax.jit(
        optimizer.init,
        out_shardings=opt_shardings(jax.eval_shape(optimizer.init, learn), shardings) if placed else None,
    )
    step = jnp.zeros((), jnp.int32)
    if placed:
        step = jax.device_put(step, NamedSharding(next(iter(shardings.values())).mesh, PartitionSpec()))
    return TrainState(params=dict(params), opt_state=make(learn), step=step)


def opt_shardings(opt_state: Any, param_shardings: Mapping[str, NamedSharding]) -> Any:
    """Shardings of an optimiser state: a leaf filed under a parameter's name lies like it, any other is replicated."""
    mesh = next(iter(param_shardings.values())).mesh
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(path, _leaf):
        key = getattr(path[-1], "key", None)
        return param_shardings.get(key, replicated)

    return jax.tree_util.tree_map_with_path(place, opt_state)


def state_shardings(opt_state: Any, param_shardings: Mapping[str, NamedSharding]) -> TrainState:
    """Where every leaf of a state lies, given its optimiser state (which may be abstract)."""
    mesh = next(iter(param_shardings.values())).mesh
    return TrainState(
        params=dict(param_shardings),
        opt_state=opt_shardings(opt_state, param_shardings),
        step=NamedSharding(mesh, PartitionSpec()),
    )
