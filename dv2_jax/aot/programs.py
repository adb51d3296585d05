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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dv2_jax.agent.tools.tool_registry import run_tools
from dv2_jax.aot.compile import bytes_per_device
from dv2_jax.aot.flops import forward_flops, text_flops, training_flops, vision_flops
from dv2_jax.checkpoint.policy_spec import load_policy_spec
from dv2_jax.config import Config, EngineConfig
from dv2_jax.data.packing import PackedBatch, PackSpec
from dv2_jax.engine import batch_builder
from dv2_jax.engine.buckets import Buckets
from dv2_jax.engine.engine_sharding import EngineSharding
from dv2_jax.engine.model_runner import jit_functions
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.vision_inputs import VisionBatch, VisionBucket, vision_batch
from dv2_jax.ops.paged_attention import Pages, empty_pages
from dv2_jax.parallel.mesh import make_mesh, num_data_shards
from dv2_jax.policy import Policy, assemble_policy
from dv2_jax.trainer.optimizer import OptimizerBundle, make_optimizer_bundle
from dv2_jax.trainer.rl_step import make_logprob_fn
from dv2_jax.trainer.state import TrainState, abstract_state
from dv2_jax.trainer.train_step import batch_shardings
from dv2_jax.trainer.training_setup import TrainingSetup, rl_setup, sft_setup


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


def abstract_policy(config: Config, devices: Sequence[Any], host_devices: Sequence[Any] = ()) -> Policy:
    """Assembles the policy of `config.model` for described devices.

    If the folder of a Hugging Face checkpoint does not exist, `model.preset` gives the architecture. `host_devices` are the
    devices of a slice that equals one host of `devices`; the engine's programs are compiled for them.
    """
    source = config.model
    kind, _, folder = source.init.partition(":")
    if kind == "hf" and not Path(folder).is_dir():
        source = dataclasses.replace(source, init="random")
    mesh, tools = make_mesh(config.mesh, devices), run_tools(config.agent)
    return assemble_policy(source, load_policy_spec(source), mesh, tools, host_devices=host_devices)


def sft_programs(policy: Policy, config: Config) -> list[Program]:
    """Returns the SFT programs: the gradient of a microbatch for each image bucket, and the optimizer step."""
    setup = sft_setup(policy, config)
    return _update_programs("SFT", policy, setup, resident_bytes=0, microbatches=config.sft.microbatches)


def rl_programs(policy: Policy, config: Config) -> list[Program]:
    """Returns the RL training programs: policy gradient and optimizer step, with a KL term also the reference's log-probs.

    The engine's pages are resident, and with a KL term the weights of the reference policy.
    """
    rl, temperature = config.rl, config.sampling.temperature
    setup = rl_setup(policy, config)
    spec = setup.pack_spec
    reference_bytes = _reference_bytes(policy, config)
    resident_bytes = bytes_per_device(_engine_memory(policy, config)) + reference_bytes
    # One row per trajectory: trajectories of full length cannot share a row.
    microbatches = -(-rl.prompts_per_step * rl.group_size // rl.minibatches // rl.microbatch_rows)
    programs = _update_programs("RL", policy, setup, resident_bytes, microbatches, reference=bool(reference_bytes))
    if not reference_bytes:
        return programs
    logprob_fn = make_logprob_fn(policy.graphdef, temperature=temperature, forbidden=policy.forbidden, mesh=policy.mesh)
    batch = abstract_batch(spec, spec.image_buckets[0], policy.mesh)
    # The program's arguments are the reference's weights; the trainer's weights and moments stay resident.
    resident_bytes += bytes_per_device(_train_state(policy, setup.optimizer_bundle)) - reference_bytes
    model_flops = forward_flops(policy.config, **_size(spec, spec.image_buckets[0])) / policy.mesh.size
    shape = _shape(spec, batch)
    arguments = (policy.params, batch)
    scorer = Program(
        "log-probs", shape, logprob_fn, arguments, resident_bytes, policy.mesh, model_flops, runs_per_step=microbatches
    )
    return [*programs, scorer]


def engine_programs(policy: Policy, config: Config) -> list[Program]:
    """Returns one host's engine programs: prefill and decode in their largest buckets, the image encoder in its first.

    The optimizer state is resident, and so are the trainer's weights if the engine has a copy.
    """
    engine, model, mesh = policy.engine_config(config), policy.config, policy.engine_mesh
    placement = EngineSharding.for_mesh(mesh, model.text.num_kv_heads)
    functions = jit_functions(policy.engine_graphdef, placement)
    params, (pages, image_cache) = policy.engine_params, _engine_memory(policy, config)
    prefill_batch, decode_batch = _engine_batches(policy, engine, config, placement)
    trainer_bytes = _trainer_bytes(policy, config)

    def describe(batch, tokens):
        rows, pages_per_row = batch.page_table.shape
        return f"{rows} × {tokens} behind {pages_per_row * engine.page_size:,}"

    def flops(batch, tokens, logits):
        rows, pages_per_row = batch.page_table.shape
        cached = pages_per_row * engine.page_size
        return text_flops(model.text, rows=rows, tokens=tokens, cached=cached, logits=logits) / mesh.size

    prefill = Program(
        "prefill",
        describe(prefill_batch, engine.prefill_tokens),
        functions["prefill"],
        (params, pages, image_cache, prefill_batch),
        trainer_bytes,
        mesh,
        model_flops=flops(prefill_batch, engine.prefill_tokens, 0),
    )
    decode = Program(
        "decode",
        describe(decode_batch, engine.decode_tokens),
        functions["decode"],
        (params, pages, *_decode_tables(policy), decode_batch),
        trainer_bytes + bytes_per_device(image_cache),
        mesh,
        model_flops=flops(decode_batch, engine.decode_tokens, engine.decode_tokens),
        max_trip_count=engine.decode_tokens,
    )
    bucket = policy.image_buckets(config, rows=1, row_tokens=config.agent.max_total_tokens)[0]
    if not bucket.rows:
        return [prefill, decode]
    cache_rows = jax.ShapeDtypeStruct((bucket.num_merged_tokens,), jnp.int32)
    encode = Program(
        "encode",
        f"{bucket.rows} × {bucket.length:,} patches",
        functions["encode"],
        (params, image_cache, *_replicated((_abstract_vision(bucket, model), cache_rows), mesh)),
        trainer_bytes + bytes_per_device(pages),
        mesh,
        model_flops=vision_flops(model.vision, rows=bucket.rows, length=bucket.length) / mesh.size,
    )
    return [prefill, decode, encode]


def _engine_batches(policy: Policy, engine: EngineConfig, config: Config, placement: EngineSharding) -> tuple[Any, Any]:
    """Returns the largest abstract prefill batch and decode batch with their shardings."""
    mesh = policy.engine_mesh
    buckets = Buckets.from_config(engine, policy.config.text, config.agent.max_total_tokens, num_data_shards(mesh))
    prefill = batch_builder.empty_prefill_batch(*buckets.prefill[-1], 0)
    rows, width = buckets.decode[-1]
    decode = batch_builder.empty_decode_batch(rows, engine.decode_tokens, width, 0)

    def shard(path, x):
        sharding = placement.batch_by_token if path[-1].name == "positions" else placement.rows
        return _with_sharding(x, sharding or NamedSharding(mesh, PartitionSpec()))

    return jax.tree_util.tree_map_with_path(shard, prefill), jax.tree_util.tree_map_with_path(shard, decode)


def _decode_tables(policy: Policy) -> tuple[Any, ...]:
    """Returns the abstract seed, stop table, mask of forbidden ids and `min_live` of a decode dispatch."""
    vocab_size = policy.config.text.vocab_size
    tables = (
        jax.ShapeDtypeStruct((), jnp.uint32),
        jax.ShapeDtypeStruct((policy.num_stop_states, vocab_size), jnp.int32),
        jax.ShapeDtypeStruct((vocab_size,), jnp.bool_),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    return _replicated(tables, policy.engine_mesh)


def _trainer_bytes(policy: Policy, config: Config) -> int:
    """Returns the bytes per device of the trainer that stay resident while an RL run generates."""
    if config.recipe != "rl":
        return 0
    state = _train_state(policy, make_optimizer_bundle(config, policy.logical_axes, 1))
    weights = bytes_per_device(state.params) if policy.engine_has_copy else 0
    return bytes_per_device(state.opt_state) + weights + _reference_bytes(policy, config)


def _reference_bytes(policy: Policy, config: Config) -> int:
    """Returns the bytes per device of the reference policy of the KL term; 0 without one."""
    return bytes_per_device(policy.params) if config.rl.kl_coefficient else 0


def abstract_batch(spec: PackSpec, bucket: VisionBucket, mesh: Mesh, *, reference: bool = False) -> PackedBatch:
    """Returns an abstract packed batch with the shardings of a training batch, optionally with reference log-probs."""
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
        reference_logprobs=numbers if reference else None,
    )
    return jax.tree.map(_with_sharding, batch, batch_shardings(batch, mesh))


def _update_programs(
    name: str,
    policy: Policy,
    setup: TrainingSetup,
    resident_bytes: int,
    microbatches: int,
    *,
    reference: bool = False,
) -> list[Program]:
    bundle, spec = setup.optimizer_bundle, setup.pack_spec
    state = _train_state(policy, bundle)
    gradients = {
        n: jax.ShapeDtypeStruct(state.params[n].shape, jnp.float32, sharding=policy.shardings[n])
        for n in bundle.trainable
    }
    functions = setup.train_step.jit_functions()
    programs = []
    for number, bucket in enumerate(spec.image_buckets):
        batch = abstract_batch(spec, bucket, policy.mesh, reference=reference)
        flops = training_flops(policy.config, **_size(spec, bucket), freeze=policy.source.freeze)
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


def _train_state(policy: Policy, bundle: OptimizerBundle) -> TrainState:
    return abstract_state(policy.params, bundle.optimizer, bundle.trainable)


def _engine_memory(policy: Policy, config: Config) -> tuple[Pages, jax.ShapeDtypeStruct]:
    """Returns the engine's abstract pages and image cache with its shardings."""
    text, engine, mesh = policy.config.text, policy.engine_config(config), policy.engine_mesh
    dtype, groups = jnp.dtype(policy.source.compute_dtype), num_data_shards(mesh)
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


def _replicated(tree: Any, mesh: Mesh) -> Any:
    return jax.tree.map(lambda x: _with_sharding(x, NamedSharding(mesh, PartitionSpec())), tree)


def _with_sharding(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
