"""One optimizer step over any number of microbatches.

`Update` compiles two programs: *accumulate* adds the gradient of one microbatch to a running sum (one compilation per
listed vision bucket), *apply* turns the sum into new weights. The number of microbatches is not a shape, so a step with
more or fewer of them compiles nothing. Losses divide by a denominator of the whole step that every microbatch carries;
hence gradients just add, and the result does not depend on how examples were split over rows, microbatches or devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Float

from dv2_jax.data.packing import Example, PackedBatch, PackSpec, assign_rows, bucket_of, build_batch
from dv2_jax.parallel import distributed, malloc
from dv2_jax.parallel.mesh import CONTEXT, ROWS, patch_axes, under
from dv2_jax.trainer.state import Params, TrainState, split_params, state_shardings

# (all parameters, microbatch) -> (its share of the step's loss, metrics). Metrics of microbatches add up; those whose
# names end in "_max" combine by maximum.
LossFn = Callable[[Params, PackedBatch], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]


class Update:
    """`state, metrics = update(state, microbatches)`; the old state's buffers are donated."""

    def __init__(
        self,
        loss_fn: LossFn,
        optimizer: optax.GradientTransformation,
        trainable: tuple[str, ...],
        *,
        schedule: optax.Schedule | None = None,
        param_shardings: Mapping[str, NamedSharding] | None = None,
    ):
        self.trainable = trainable
        self._mesh = next(iter(param_shardings.values())).mesh if param_shardings else None
        # Results are bound to their places, and new ones lie exactly where old ones did: else a later step would be
        # compiled again.
        learn_shardings = state_places = SingleDeviceSharding(jax.devices()[0])
        if param_shardings:
            learn_shardings = {n: param_shardings[n] for n in trainable}
            abstract = {n: jax.ShapeDtypeStruct((1,), jnp.float32) for n in trainable}
            state_places = state_shardings(jax.eval_shape(optimizer.init, abstract), param_shardings)

        def zeros(params: Params) -> Params:
            return {n: jnp.zeros(params[n].shape, jnp.float32) for n in trainable}

        def accumulate(params: Params, gradients: Params, batch: PackedBatch):
            learn, frozen = split_params(params, trainable)

            def loss(learn):
                return loss_fn({**frozen, **learn}, batch)

            (value, metrics), new = jax.value_and_grad(loss, has_aux=True)(learn)
            return jax.tree.map(jnp.add, gradients, new), {"loss": value, **metrics}

        def apply(state: TrainState, gradients: Params):
            learn, frozen = split_params(state.params, trainable)
            updates, opt_state = optimizer.update(gradients, state.opt_state, learn)
            params = {**frozen, **optax.apply_updates(learn, updates)}
            metrics = {"grad_norm": optax.tree.norm(gradients)}
            if schedule is not None:
                metrics["learning_rate"] = schedule(state.step)
            return TrainState(params=params, opt_state=opt_state, step=state.step + 1), metrics

        self._zeros = jax.jit(zeros, out_shardings=learn_shardings)
        self._accumulate = jax.jit(accumulate, donate_argnums=(1,), out_shardings=(learn_shardings, None))
        self._apply = jax.jit(apply, donate_argnums=(0,), out_shardings=(state_places, None))

    def __call__(self, state: TrainState, microbatches: Sequence[PackedBatch]) -> tuple[TrainState, dict[str, float]]:
        """One optimizer step. Raises FloatingPointError when the loss or the gradient norm is not finite."""
        if not microbatches:
            raise ValueError("an optimizer step needs at least one microbatch")
        with under(self._mesh):
            gradients, parts = self._sum(state.params, microbatches)
            state, metrics = self._apply(state, gradients)
        combined = combine(jax.device_get(parts)) | {k: float(v) for k, v in jax.device_get(metrics).items()}
        if not (math.isfinite(combined["loss"]) and math.isfinite(combined["grad_norm"])):
            raise FloatingPointError(
                f"step {int(state.step)}: loss {combined['loss']}, gradient norm {combined['grad_norm']};"
                " the last checkpoint is intact: lower optim.learning_rate or optim.max_grad_norm and resume"
            )
        return state, combined

    def gradients(self, params: Params, microbatches: Iterable[PackedBatch]) -> tuple[Params, dict[str, float]]:
        """The summed gradient and metrics of a step, without applying it."""
        with under(self._mesh):
            gradients, parts = self._sum(params, microbatches)
        return gradients, combine(jax.device_get(parts))

    def _sum(self, params: Params, microbatches: Iterable[PackedBatch]) -> tuple[Params, list[dict[str, Array]]]:
        gradients, parts = self._zeros(params), []
        for batch in microbatches:
            gradients, metrics = self._accumulate(params, gradients, batch)
            parts.append(metrics)
        return gradients, parts

    def jitted(self) -> dict[str, Callable]:
        """The programs by name: `zeros(params)`, `accumulate(params, gradients, batch)`, `apply(state, gradients)`."""
        return {"zeros": self._zeros, "accumulate": self._accumulate, "apply": self._apply}

    def prepare(self, params: Params, spec: PackSpec, mesh: Mesh | None) -> None:
        """Compile for every image bucket: whichever the first step needs, a later one may need another."""
        for bucket in spec.image_buckets:
            empty = build_batch([[]] * spec.rows, replace(spec, image_buckets=(bucket,)))
            self.gradients(params, [place(empty, mesh)])
        malloc.give_back()

    def compiled_programs(self) -> int:
        """Compilations so far: the number of shapes seen by each of the three programs."""
        return sum(f._cache_size() for f in self.jitted().values())


def combine(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics of a step from those of its microbatches: maxima of names ending in "_max", sums of all others."""
    return {
        name: float(max(p[name] for p in parts) if name.endswith("_max") else np.sum([p[name] for p in parts]))
        for name in parts[0]
    }


def pack_share(examples: Sequence[Example], spec: PackSpec, denominator: float) -> list[PackedBatch]:
    """The microbatches of one optimizer step, at least one, each from this host's own examples. Every host calls it.

    `spec` is of the rows that one host has. All hosts get equally many microbatches of the same shapes: each takes, of
    the picture buckets that the hosts' parts need, the largest, and who has no more examples fills up with empty rows.
    """
    buckets = sorted(spec.image_buckets, key=lambda bucket: bucket.merged)
    microbatches = assign_rows(examples, spec)
    needed = distributed.gather_json([buckets.index(bucket_of(rows, spec)) for rows in microbatches])
    agreed = [max(column) for column in zip_longest(*needed, fillvalue=0)] or [0]
    microbatches += [[[]] * spec.rows] * (len(agreed) - len(microbatches))
    return [
        build_batch(rows, replace(spec, image_buckets=(buckets[number],)), denominator=denominator)
        for rows, number in zip(microbatches, agreed, strict=True)
    ]


def place_share(batch: PackedBatch, mesh: Mesh | None) -> PackedBatch:
    """As `place`, of a batch of which every host passes the rows of its own devices alone, in the mesh's order."""
    if distributed.process_count() == 1:
        return place(batch, mesh)
    return jax.tree.map(jax.make_array_from_process_local_data, batch_shardings(batch, mesh), batch)


def place(batch: PackedBatch, mesh: Mesh | None) -> PackedBatch:
    """Put a host batch on the devices: rows and vision groups split over the data axes, the denominator everywhere.

    On several hosts every process passes the same whole batch and keeps its own devices' part.
    """
    if mesh is None:
        return jax.device_put(batch)
    return jax.tree.map(
        lambda place, leaf: jax.make_array_from_callback(np.shape(leaf), place, np.asarray(leaf).__getitem__),
        batch_shardings(batch, mesh),
        batch,
    )


def batch_shardings(batch: PackedBatch, mesh: Mesh) -> PackedBatch:
    """Where every array of a batch (which may be abstract) lies."""
    context = mesh.shape.get(CONTEXT, 1)

    def place(path, leaf) -> NamedSharding:
        name = path[0].name
        if name == "denominator":
            return NamedSharding(mesh, PartitionSpec())
        if path[-1].name == "patches":
            return NamedSharding(mesh, PartitionSpec(ROWS, *patch_axes(np.shape(leaf)[1:], context)))
        return NamedSharding(mesh, PartitionSpec(None, ROWS) if name == "positions" else PartitionSpec(ROWS))

    return jax.tree_util.tree_map_with_path(place, batch)
