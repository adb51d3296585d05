"""One optimizer step over any number of microbatches.

`TrainStep` compiles two large programs: `accumulate_gradients` adds the gradient of one microbatch to a running sum (one
compilation per vision bucket), `apply_gradients` runs the optimizer on the sum. The number of microbatches is not a
shape, so it may vary without recompilation. Every microbatch carries the denominator of the entire step and divides its
loss by it; hence gradients add, and the result does not depend on how examples are split over rows, microbatches or
devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from jaxtyping import Array, Float

from dv2_jax.data.packing import Example, PackedBatch, PackSpec, assign_rows, bucket_for_rows, build_batch
from dv2_jax.model.params import Params
from dv2_jax.parallel import distributed, malloc
from dv2_jax.parallel.mesh import BATCH_AXES, CONTEXT, patch_axes, use_mesh
from dv2_jax.trainer.state import TrainState, split_params, state_shardings

# (parameters, microbatch) -> (the microbatch's term of the step's loss, metrics). Metrics are summed over microbatches,
# except for names ending in "_max", which are reduced by maximum.
LossFn = Callable[[Params, PackedBatch], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]]


class TrainStep:
    """A compiled optimizer step: `state, metrics = train_step(state, microbatches)`. The passed state is donated.

    `param_shardings` gives the sharding of every parameter; without it everything is on the first device.
    """

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
        mesh = next(iter(param_shardings.values())).mesh if param_shardings else None
        self._mesh = cast(Mesh | None, mesh)  # of devices, not abstract
        # Outputs are pinned to the input shardings; otherwise the second step would see different shardings and
        # recompile.
        gradient_shardings: Any = SingleDeviceSharding(jax.devices()[0])
        new_state_shardings = gradient_shardings
        if param_shardings:
            gradient_shardings = {n: param_shardings[n] for n in trainable}
            abstract = {n: jax.ShapeDtypeStruct((1,), jnp.float32) for n in trainable}
            new_state_shardings = state_shardings(jax.eval_shape(optimizer.init, abstract), param_shardings)

        def zero_gradients(params: Params) -> Params:
            return {n: jnp.zeros(params[n].shape, jnp.float32) for n in trainable}

        def accumulate_gradients(params: Params, gradients: Params, batch: PackedBatch):
            trainable_params, frozen = split_params(params, trainable)

            def loss(trainable_params):
                return loss_fn({**frozen, **trainable_params}, batch)

            (value, metrics), new = jax.value_and_grad(loss, has_aux=True)(trainable_params)
            return jax.tree.map(jnp.add, gradients, new), {"loss": value, **metrics}

        def apply_gradients(state: TrainState, gradients: Params):
            trainable_params, frozen = split_params(state.params, trainable)
            updates, opt_state = optimizer.update(gradients, state.opt_state, trainable_params)
            params = {**frozen, **optax.apply_updates(trainable_params, updates)}
            metrics = {"grad_norm": optax.tree.norm(gradients)}
            if schedule is not None:
                metrics["learning_rate"] = schedule(state.step)
            return TrainState(params=params, opt_state=opt_state, step=state.step + 1), metrics

        self._zero_gradients = jax.jit(zero_gradients, out_shardings=gradient_shardings)
        self._accumulate_gradients = jax.jit(
            accumulate_gradients, donate_argnums=(1,), out_shardings=(gradient_shardings, None)
        )
        self._apply_gradients = jax.jit(apply_gradients, donate_argnums=(0,), out_shardings=(new_state_shardings, None))

    def __call__(self, state: TrainState, microbatches: Sequence[PackedBatch]) -> tuple[TrainState, dict[str, float]]:
        """Take one optimizer step over the microbatches; returns the new state and the metrics of the step.

        Raises:
            ValueError: there is no microbatch.
            FloatingPointError: the loss or the gradient norm is not finite.
        """
        if not microbatches:
            raise ValueError("an optimizer step needs at least one microbatch")
        with use_mesh(self._mesh):
            gradients, microbatch_metrics = self._sum_gradients(state.params, microbatches)
            state, update_metrics = self._apply_gradients(state, gradients)
        metrics = reduce_metrics(jax.device_get(microbatch_metrics))
        metrics |= {name: float(value) for name, value in jax.device_get(update_metrics).items()}
        if not (math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"])):
            raise FloatingPointError(
                f"step {int(state.step)}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']};"
                " the last checkpoint is intact: lower optim.learning_rate or optim.max_grad_norm and resume"
            )
        return state, metrics

    def gradients(self, params: Params, microbatches: Iterable[PackedBatch]) -> tuple[Params, dict[str, float]]:
        """Compute the accumulated gradient and the metrics of a step without applying it."""
        with use_mesh(self._mesh):
            gradients, microbatch_metrics = self._sum_gradients(params, microbatches)
        return gradients, reduce_metrics(jax.device_get(microbatch_metrics))

    def _sum_gradients(
        self, params: Params, microbatches: Iterable[PackedBatch]
    ) -> tuple[Params, list[dict[str, Array]]]:
        gradients, microbatch_metrics = self._zero_gradients(params), []
        for batch in microbatches:
            gradients, metrics = self._accumulate_gradients(params, gradients, batch)
            microbatch_metrics.append(metrics)
        return gradients, microbatch_metrics

    def jit_functions(self) -> dict[str, Any]:
        """Return the jitted functions by name.

        They are `zero_gradients(params)`, `accumulate_gradients(params, gradients, batch)` and
        `apply_gradients(state, gradients)`.
        """
        return {
            "zero_gradients": self._zero_gradients,
            "accumulate_gradients": self._accumulate_gradients,
            "apply_gradients": self._apply_gradients,
        }

    def warmup(
        self,
        params: Params,
        spec: PackSpec,
        mesh: Mesh | None,
        complete: Callable[[PackedBatch], PackedBatch] = lambda batch: batch,
    ) -> None:
        """Compile the gradient of every image bucket, so that no later step compiles.

        `complete` makes of a sharded batch what the steps pass, with reference log-probs for instance: a batch with
        other fields is another pytree, for which the gradient would compile again.
        """
        for bucket in spec.image_buckets:
            empty = build_batch([[]] * spec.rows, replace(spec, image_buckets=(bucket,)))
            self.gradients(params, [complete(shard_batch(empty, mesh))])
        malloc.malloc_trim()

    def compiled_programs(self) -> int:
        """Count the compilations so far, summed over the three jitted functions."""
        return sum(f._cache_size() for f in self.jit_functions().values())


def reduce_metrics(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Reduce the metrics of the microbatches to those of the step: maximum of names ending in "_max", sum of all others."""
    return {
        name: float(max(p[name] for p in parts) if name.endswith("_max") else np.sum([p[name] for p in parts]))
        for name in parts[0]
    }


def pack_local(examples: Sequence[Example], spec: PackSpec, denominator: float) -> list[PackedBatch]:
    """Pack this host's examples into the microbatches of one optimizer step, at least one. Collective.

    `spec` describes the rows of one host. All hosts get equally many microbatches of the same shapes: each takes, of
    the image buckets that the hosts need, the largest; a host without further examples contributes empty rows.
    """
    buckets = sorted(spec.image_buckets, key=lambda bucket: bucket.num_merged_tokens)
    microbatches = assign_rows(examples, spec)
    needed = distributed.allgather_json([buckets.index(bucket_for_rows(rows, spec)) for rows in microbatches])
    agreed = [max(column) for column in zip_longest(*needed, fillvalue=0)] or [0]
    microbatches += [[[]] * spec.rows] * (len(agreed) - len(microbatches))
    return [
        build_batch(rows, replace(spec, image_buckets=(buckets[number],)), denominator=denominator)
        for rows, number in zip(microbatches, agreed, strict=True)
    ]


def to_global_array(batch: PackedBatch, mesh: Mesh | None) -> PackedBatch:
    """Build the global batch from process-local rows: every process passes the rows of its own devices, in mesh order."""
    if mesh is None or distributed.process_count() == 1:
        return shard_batch(batch, mesh)
    return jax.tree.map(jax.make_array_from_process_local_data, batch_shardings(batch, mesh), batch)


def shard_batch(batch: PackedBatch, mesh: Mesh | None) -> PackedBatch:
    """Transfer a host batch to the devices: rows and vision groups are sharded over the data axes.

    The denominator is replicated. On several hosts every process passes the same complete batch and transfers the
    shards of its own devices.
    """
    if mesh is None:
        return jax.device_put(batch)
    return jax.tree.map(
        lambda sharding, leaf: jax.make_array_from_callback(np.shape(leaf), sharding, np.asarray(leaf).__getitem__),
        batch_shardings(batch, mesh),
        batch,
    )


def batch_shardings(batch: PackedBatch, mesh: Mesh) -> PackedBatch:
    """Return the sharding of every array of a batch; the batch may be abstract."""
    context = mesh.shape.get(CONTEXT, 1)

    def leaf_sharding(path, leaf) -> NamedSharding:
        name = path[0].name
        if name == "denominator":
            return NamedSharding(mesh, PartitionSpec())
        if path[-1].name == "patches":
            return NamedSharding(mesh, PartitionSpec(BATCH_AXES, *patch_axes(np.shape(leaf)[1:], context)))
        return NamedSharding(
            mesh, PartitionSpec(None, BATCH_AXES) if name == "positions" else PartitionSpec(BATCH_AXES)
        )

    return jax.tree_util.tree_map_with_path(leaf_sharding, batch)
