"""The large programs of a recipe with abstract, sharded arguments, for ahead-of-time compilation without weights.

The jitted functions are those of a run. Small programs (zeroing gradients, copying pages) are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dv2_jax.agent.parser import STOP_STRINGS
from dv2_jax.aot.compile import bytes_per_device
from dv2_jax.aot.flops import forward_flops, text_flops, training_flops, vision_flops
from dv2_jax.checkpoint.policy_spec import load_policy_spec
from dv2_jax.config import Config, EngineConfig
from dv2_jax.data.loader import image_buckets
from dv2_jax.data.packing import PackedBatch, PackSpec
from dv2_jax.engine import batch_builder
from dv2_jax.engine.buckets import Buckets, per_host
from dv2_jax.engine.engine_sharding import EngineSharding, num_data_shards
from dv2_jax.engine.model_runner import jit_functions
from dv2_jax.engine.stop_strings import FINAL_STATES
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import abstract_params, build, logical_axes
from dv2_jax.model.vision_inputs import VisionBatch, VisionBucket, vision_batch
from dv2_jax.ops.paged_attention import Pages, empty_pages
from dv2_jax.parallel.mesh import check_divisible, make_mesh, max_tensor_parallelism, param_shardings
from dv2_jax.parallel.weight_sync import local_mesh
from dv2_jax.rl.losses import resolve_algorithm
from dv2_jax.trainer.optimizer import learning_rate_schedule, make_optimizer, trainable_names
from dv2_jax.trainer.rl_step import make_logprob_fn, make_rl_step
from dv2_jax.trainer.sft_step import make_sft_step
from dv2_jax.trainer.state import TrainState, opt_state_shardings, split_params
from dv2_jax.trainer.train_step import TrainStep, batch_shardings


@dataclass(frozen=True)
class Program:
    """A jitted function with abstract arguments, and the numbers that its report needs."""

    name: str
    shape: str  # description for the report
    function: Callable  # jitted
    arguments: tuple[Any, ...]  # abstract arrays with shardings
    resident_bytes: int  # bytes per device of live buffers other than the arguments
    mesh: Mesh  # current mesh while tracing
    model_flops: float = 0.0  # model FLOPs per device, without rematerialization
    runs_per_step: int = 0  # runs per optimizer step; 0 if it is not part of one
    max_trip_count: int = 0  # upper bound for data-dependent while loops


@dataclass(frozen=True)
class AbstractPolicy:
    """A policy with abstract parameters on a mesh."""

    config: Config
    model: ModelConfig
    mesh: Mesh
    host_devices: tuple[Any, ...] = ()  # devices of a single-host slice, for which the engine is compiled

    @property
    def graphdef(self):
        return build(self.model, compute_dtype=self.config.model.compute_dtype, remat=self.config.model.remat)[0]

    @property
    def shardings(self) -> dict[str, NamedSharding]:
        return param_shardings(self.mesh, logical_axes(self.model))

    @property
    def params(self) -> dict[str, jax.ShapeDtypeStruct]:
        shardings = self.shardings
        return {n: _with_sharding(p, shardings[n]) for n, p in abstract_params(self.model).items()}

    @property
    def num_batch_shards(self) -> int:
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def num_hosts(self) -> int:
        return self.mesh.size // self.engine_mesh.size

    @property
    def engine_mesh(self) -> Mesh:
        """Returns the mesh of one host's devices, on which it generates."""
        max_tensor = max_tensor_parallelism(abstract_params(self.model), logical_axes(self.model))
        own_mesh = local_mesh(self.mesh, max_tensor, self.mesh.devices.flat[0].process_index)
        if own_mesh.size == self.mesh.size or not self.host_devices:
            return own_mesh
        devices = np.array(self.host_devices).reshape(own_mesh.devices.shape)
        return Mesh(devices, own_mesh.axis_names, axis_types=own_mesh.axis_types)

    @property
    def engine_config(self) -> EngineConfig:
        """Returns the engine configuration of one host."""
        return per_host(self.config.engine, self.num_hosts)

    @property
    def engine_params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the weights that the engine reads: the trainer's, or the copy that weight sync makes."""
        if self.engine_mesh is self.mesh:
            return self.params
        dtype = self.config.model.compute_dtype
        shardings = param_shardings(self.engine_mesh, logical_axes(self.model))
        return {n: _with_sharding(p, shardings[n]) for n, p in abstract_params(self.model, dtype).items()}

    @property
    def engine_copy_bytes(self) -> int:
        """Returns the bytes per device of the engine's copy of the weights; 0 if it reads the trainer's."""
        return 0 if self.engine_mesh is self.mesh else bytes_per_device(self.engine_params)

    def train_state(self, optimizer: Any, trainable: tuple[str, ...]) -> TrainState:
        params = self.params
        opt_state = jax.eval_shape(optimizer.init, split_params(params, trainable)[0])
        shardings = opt_state_shardings(opt_state, self.shardings)
        step = _with_sharding(jax.ShapeDtypeStruct((), jnp.int32), NamedSharding(self.mesh, PartitionSpec()))
        return TrainState(params, jax.tree.map(_with_sharding, opt_state, shardings), step)


def abstract_policy(config: Config, devices: list[Any], host_devices: Sequence[Any] = ()) -> AbstractPolicy:
    """Returns the abstract policy of `config.model`.

    If the folder of a Hugging Face checkpoint does not exist, `model.preset` gives the architecture. `host_devices` are the
    devices of a slice that equals one host of `devices`; the engine's programs are compiled for them.
    """
    source = config.model
    kind, _, folder = source.init.partition(":")
    if kind == "hf" and not Path(folder).is_dir():
        source = dataclasses.replace(source, init="random")
    policy = AbstractPolicy(
        config, load_policy_spec(source).config, make_mesh(config.mesh, devices), tuple(host_devices)
    )
    check_divisible({name: p.shape for name, p in abstract_params(policy.model).items()}, policy.shardings)
    return policy


def sft_programs(policy: AbstractPolicy) -> list[Program]:
    """Returns the SFT programs: the gradient of a microbatch for each image bucket, and the optimizer step."""
    config, sft = policy.config, policy.config.sft
    optimizer, trainable = _optimizer_and_trainable(policy, sft.steps)
    train_step = make_sft_step(
        policy.graphdef,
        optimizer,
        trainable,
        schedule=learning_rate_schedule(config.optim, sft.steps),
        param_shardings=policy.shardings,
    )
    spec = _pack_spec(policy, sft.batch_rows // sft.microbatches, sft.row_tokens)
    return _update_programs(
        "SFT", policy, train_step, optimizer, trainable, spec, resident_bytes=0, microbatches=sft.microbatches
    )


def rl_programs(policy: AbstractPolicy) -> list[Program]:
    """Returns the RL training programs: policy gradient, optimizer step, and log-probs. The engine's pages are resident."""
    config = dataclasses.replace(policy.config, rl=resolve_algorithm(policy.config.rl))
    rl, temperature = config.rl, config.sampling.temperature
    steps = rl.steps * rl.minibatches
    optimizer, trainable = _optimizer_and_trainable(policy, steps)
    forbidden = np.zeros(policy.model.text.vocab_size, bool)
    forbidden[policy.model.image_token_id] = True
    train_step = make_rl_step(
        policy.graphdef,
        rl,
        optimizer,
        trainable,
        temperature=temperature,
        forbidden=forbidden,
        schedule=learning_rate_schedule(config.optim, steps),
        param_shardings=policy.shardings,
    )
    spec = _pack_spec(policy, rl.microbatch_rows, rl.row_tokens)
    resident_bytes = bytes_per_device(_engine_memory(policy))
    # One row per trajectory: trajectories of full length cannot share a row.
    microbatches = -(-rl.prompts_per_step * rl.group_size // rl.minibatches // rl.microbatch_rows)
    programs = _update_programs(
        "RL", policy, train_step, optimizer, trainable, spec, resident_bytes=resident_bytes, microbatches=microbatches
    )
    logprob_fn = make_logprob_fn(policy.graphdef, temperature=temperature, forbidden=forbidden)
    batch = abstract_batch(spec, spec.image_buckets[0], policy.mesh)
    resident_bytes += bytes_per_device(policy.train_state(optimizer, trainable).opt_state)
    model_flops = forward_flops(policy.model, **_size(spec, spec.image_buckets[0])) / policy.mesh.size
    shape = _shape(spec, batch)
    arguments = (policy.params, batch)
    return [*programs, Program("log-probs", shape, logprob_fn, arguments, resident_bytes, policy.mesh, model_flops)]


def engine_programs(policy: AbstractPolicy) -> list[Program]:
    """Returns one host's engine programs: prefill and decode in their largest buckets, the image encoder in its first.

    The optimizer state is resident, and so are the trainer's weights if the engine has a copy.
    """
    config, engine, model, mesh = policy.config, policy.engine_config, policy.model, policy.engine_mesh
    graphdef = build(model, compute_dtype=config.model.compute_dtype)[0]
    states = FINAL_STATES + len({text[:end] for text in STOP_STRINGS for end in range(len(text))})
    placement = EngineSharding.for_mesh(mesh, model.text.num_kv_heads)
    functions = jit_functions(graphdef, placement)
    replicated = NamedSharding(mesh, PartitionSpec())
    params, (pages, image_cache) = policy.engine_params, _engine_memory(policy)
    shapes = Buckets.from_config(engine, config.agent.max_total_tokens, num_data_shards(mesh))
    trainer_bytes = 0
    if config.recipe == "rl":
        state = policy.train_state(*_optimizer_and_trainable(policy, 1))
        trainer_bytes = bytes_per_device(state.opt_state)
        if policy.engine_copy_bytes:
            trainer_bytes += bytes_per_device(state.params)

    def replicate(tree: Any) -> Any:
        return jax.tree.map(lambda x: _with_sharding(x, replicated), tree)

    def shard_batch(tree: Any) -> Any:
        def shard(path, x):
            sharding = placement.batch_by_token if path[-1].name == "positions" else placement.rows
            return _with_sharding(x, sharding or replicated)

        return jax.tree_util.tree_map_with_path(shard, tree)

    prefill_batch = shard_batch(
        batch_builder.empty_prefill_batch(shapes.prefill_rows[-1], engine.prefill_tokens, shapes.prefill_widths[-1], 0)
    )
    decode_batch = shard_batch(
        batch_builder.empty_decode_batch(shapes.decode_rows[-1], engine.decode_tokens, shapes.decode_widths[-1], 0)
    )
    vocabulary = model.text.vocab_size
    seed, table, forbidden = replicate(
        (
            jax.ShapeDtypeStruct((), jnp.uint32),
            jax.ShapeDtypeStruct((states, vocabulary), jnp.int32),
            jax.ShapeDtypeStruct((vocabulary,), jnp.bool_),
        )
    )
    bucket = image_buckets(config.image, config.agent, model, rows=1, row_tokens=config.agent.max_total_tokens)[0]
    vision, cache_rows = replicate(
        (_abstract_vision(bucket, model), jax.ShapeDtypeStruct((bucket.num_merged_tokens,), jnp.int32))
    )

    def describe(batch, tokens):
        rows, pages_per_row = batch.page_table.shape
        return f"{rows} × {tokens} behind {pages_per_row * engine.page_size:,}"

    def flops(batch, tokens, logits):
        rows, pages_per_row = batch.page_table.shape
        cached = pages_per_row * engine.page_size
        return text_flops(model.text, rows=rows, tokens=tokens, cached=cached, logits=logits) / mesh.size

    programs = [
        Program(
            "prefill",
            describe(prefill_batch, engine.prefill_tokens),
            functions["prefill"],
            (params, pages, image_cache, prefill_batch),
            trainer_bytes,
            mesh,
            model_flops=flops(prefill_batch, engine.prefill_tokens, 0),
        ),
        Program(
            "decode",
            describe(decode_batch, engine.decode_tokens),
            functions["decode"],
            (params, pages, seed, table, forbidden, decode_batch),
            trainer_bytes + bytes_per_device(image_cache),
            mesh,
            model_flops=flops(decode_batch, engine.decode_tokens, engine.decode_tokens),
            max_trip_count=engine.decode_tokens,
        ),
    ]
    if bucket.rows:
        programs.append(
            Program(
                "encode",
                f"{bucket.rows} × {bucket.length:,} patches",
                functions["encode"],
                (params, image_cache, vision, cache_rows),
                trainer_bytes + bytes_per_device(pages),
                mesh,
                model_flops=vision_flops(model.vision, rows=bucket.rows, length=bucket.length) / mesh.size,
            )
        )
    return programs


def abstract_batch(spec: PackSpec, bucket: VisionBucket, mesh: Mesh) -> PackedBatch:
    """Returns an abstract packed batch with the shardings of a training batch."""
    rows = (spec.rows, spec.row_tokens)
    ids = jax.ShapeDtypeStruct(rows, jnp.int32)
    numbers = jax.ShapeDtypeStruct(rows, jnp.float32)
    vision = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((spec.groups, *x.shape), x.dtype), _abstract_vision(bucket, spec.model)
    )
    batch = PackedBatch(
        token_ids=ids,
        targets=ids,
        segment_ids=ids,
        positions=jax.ShapeDtypeStruct((3, *rows), jnp.int32),
        loss_weight=numbers,
        image_index=ids,
        vision=vision,
        behavior_logprobs=numbers,
        advantages=numbers,
        denominator=jax.ShapeDtypeStruct((), jnp.float32),
    )
    return jax.tree.map(_with_sharding, batch, batch_shardings(batch, mesh))


def _update_programs(
    name: str,
    policy: AbstractPolicy,
    train_step: TrainStep,
    optimizer: Any,
    trainable: tuple[str, ...],
    spec: PackSpec,
    resident_bytes: int,
    microbatches: int,
) -> list[Program]:
    state = policy.train_state(optimizer, trainable)
    shardings = policy.shardings
    gradients = {n: jax.ShapeDtypeStruct(state.params[n].shape, jnp.float32, sharding=shardings[n]) for n in trainable}
    functions = train_step.jit_functions()
    programs = []
    for number, bucket in enumerate(spec.image_buckets):
        batch = abstract_batch(spec, bucket, policy.mesh)
        flops = training_flops(policy.model, **_size(spec, bucket), freeze=policy.config.model.freeze)
        programs.append(
            Program(
                f"{name} gradient",
                _shape(spec, batch),
                functions["accumulate_gradients"],
                (state.params, gradients, batch),
                resident_bytes + bytes_per_device(state.opt_state),
                policy.mesh,
                model_flops=flops / policy.mesh.size,
                runs_per_step=0 if number else microbatches,  # a step is assumed to use the first, most common bucket
            )
        )
    apply = Program(
        f"{name} optimizer",
        "",
        functions["apply_gradients"],
        (state, gradients),
        resident_bytes,
        policy.mesh,
        runs_per_step=1,
    )
    return [*programs, apply]


def _size(spec: PackSpec, bucket: VisionBucket) -> dict[str, Any]:
    """Returns the size of a microbatch of full rows, one trajectory each, with images that fill the bucket."""
    return {"rows": spec.rows, "tokens": spec.row_tokens, "images": (spec.groups * bucket.rows, bucket.length)}


def _optimizer_and_trainable(policy: AbstractPolicy, steps: int) -> tuple[Any, tuple[str, ...]]:
    config = policy.config
    return make_optimizer(config.optim, steps), trainable_names(logical_axes(policy.model), config.model.freeze)


def _pack_spec(policy: AbstractPolicy, rows: int, row_tokens: int) -> PackSpec:
    config, shards = policy.config, policy.num_batch_shards
    buckets = image_buckets(
        config.image, config.agent, policy.model, rows=max(1, rows // shards), row_tokens=row_tokens
    )
    return PackSpec(policy.model, rows, row_tokens, buckets, groups=shards)


def _engine_memory(policy: AbstractPolicy) -> tuple[Pages, jax.ShapeDtypeStruct]:
    """Returns the engine's abstract pages and image cache with its shardings."""
    text, engine, mesh = policy.model.text, policy.engine_config, policy.engine_mesh
    dtype, groups = jnp.dtype(policy.config.model.compute_dtype), num_data_shards(mesh)
    pages = jax.eval_shape(
        lambda: empty_pages(
            text.num_layers, engine.pages, engine.page_size, text.num_kv_heads, text.head_dim, dtype, groups
        )
    )
    replicated = NamedSharding(mesh, PartitionSpec())
    sharding = EngineSharding.for_mesh(mesh, text.num_kv_heads).pages or replicated
    image_cache = jax.ShapeDtypeStruct((engine.image_cache_tokens, text.hidden_size), dtype, sharding=replicated)
    return jax.tree.map(lambda x: _with_sharding(x, sharding), pages), image_cache


def _abstract_vision(bucket: VisionBucket, model: ModelConfig) -> VisionBatch:
    empty = vision_batch([], (bucket,), model.vision)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), empty)


def _shape(spec: PackSpec, batch: PackedBatch) -> str:
    patches = batch.vision.patches.shape
    return f"{spec.rows} × {spec.row_tokens:,} tokens, {patches[0]} × {patches[1] * patches[2]:,} patches"


def _with_sharding(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
