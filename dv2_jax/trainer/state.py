"""What training carries from step to step, and where each array of it lives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int

Params = dict[str, Array]  # flat: dotted name to array, layers stacked


@partial(jax.tree_util.register_dataclass, data_fields=["params", "opt_state", "step"], meta_fields=[])
@dataclass(frozen=True)
class TrainState:
    params: Params
    opt_state: Any  # of the trainable parameters only
    step: Int[Array, ""]  # optimizer steps done


def split_params(params: Params, trainable: tuple[str, ...]) -> tuple[Params, Params]:
    """(trainable, frozen) parts of a flat parameter dict."""
    chosen = set(trainable)
    return {n: params[n] for n in trainable}, {n: p for n, p in params.items() if n not in chosen}


def init_state(params: Params, optimizer: optax.GradientTransformation, trainable: tuple[str, ...]) -> TrainState:
    """A fresh state around `params`, whose placement the optimizer's moments follow."""
    params = bound(params)
    learn, _ = split_params(params, trainable)
    places = opt_shardings(jax.eval_shape(optimizer.init, learn), {name: p.sharding for name, p in learn.items()})
    opt_state = jax.jit(optimizer.init, out_shardings=places)(learn)
    return TrainState(params=params, opt_state=opt_state, step=step_counter(0, params))


def bound(tree: Any) -> Any:
    """The same arrays, bound to where they lie.

    Programs are compiled once for arrays that JAX may move, and once more for bound ones, which a step's results are.
    """
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding), tree)


def step_counter(done: int, params: Params) -> Int[Array, ""]:
    """`done` optimizer steps as an array, on every device that the parameters are on."""
    return jax.device_put(np.int32(done), replicated_like(next(iter(params.values())).sharding))


def replicated_like(sharding: Sharding) -> Sharding:
    """The whole of an array on every device of `sharding`."""
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding


def opt_shardings(opt_state: Any, param_shardings: Mapping[str, Sharding]) -> Any:
    """Shardings of an optimizer state: a leaf filed under a parameter's name lies like it, any other is replicated."""
    replicated = replicated_like(next(iter(param_shardings.values())))

    def place(path, _leaf):
        return param_shardings.get(getattr(path[-1], "key", None), replicated)

    return jax.tree_util.tree_map_with_path(place, opt_state)


def state_shardings(opt_state: Any, param_shardings: Mapping[str, Sharding]) -> TrainState:
    """Where every leaf of a state lies, given its optimizer state (which may be abstract)."""
    return TrainState(
        params=dict(param_shardings),
        opt_state=opt_shardings(opt_state, param_shardings),
        step=replicated_like(next(iter(param_shardings.values()))),
    )
