"""Every large program of a recipe with abstract, placed arguments: what is compiled ahead of time, without weights.

The functions are those that run; only the arrays are missing. Small ones (zeroing gradients, copying pages) are left out.
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
from dv2_jax.checkpoint.policy_spec import architecture
from dv2_jax.config import Config, EngineConfig
from dv2_jax.data.loader import image_buckets
from dv2_jax.data.packing import PackedBatch, PackSpec
from dv2_jax.engine import batch_builder
from dv2_jax.engine.buckets import Shapes, of_one_host
from dv2_jax.engine.engine_sharding import Placement, groups_of
from dv2_jax.engine.model_runner import jitted
from dv2_jax.engine.stop_strings import FINAL_STATES
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import abstract_params, build, logical_axes
from dv2_jax.model.vision_inputs import VisionBatch, VisionBucket, vision_batch
from dv2_jax.ops.paged_attention import Pages, empty_pages
from dv2_jax.parallel.mesh import check_divisible, make_mesh, param_shardings, widest_tensor
from dv2_jax.parallel.weight_sync import own_mesh
from dv2_jax.rl.losses import with_algorithm
from dv2_jax.trainer.optimizer import learning_rate, make_optimizer, trainable_names
from dv2_jax.trainer.rl_step import make_rl_step, make_scorer
from dv2_jax.trainer.sft_step import make_sft_step
from dv2_jax.trainer.state import TrainState, opt_shardings, split_params
from dv2_jax.trainer.train_step import Update, batch_shardings


@dataclass(frozen=True)
class Program:
    name: str
    shape: str  # for people
    function: Callable  # jitted
    arguments: tuple[Any, ...]  # abstract arrays
    beside: int  # bytes per device that the run holds besides the arguments
    mesh: Mesh  # under which it is traced
    useful: float = 0.0  # operations per device that the model's mathematics asks for
    repeats: int = 0  # runs in one optimizer step; 0: it is no part of one
    loops: int = 0  # runs at most of a loop that its data end


@dataclass(frozen=True)
class Abstract:
    """A policy without weights, on a mesh."""

    config: Config
    model: ModelConfig
    mesh: Mesh
    host: tuple[Any, ...] = ()  # devices of a slice that is one host alone, to compile the engine for

    @property
    def graphdef(self):
        return build(self.model, compute_dtype=self.config.model.compute_dtype, remat=self.config.model.remat)[0]

    @property
    def shardings(self) -> dict[str, NamedSharding]:
        return param_shardings(self.mesh, logical_axes(self.model))

    @property
    def params(self) -> dict[str, jax.ShapeDtypeStruct]:
        places = self.shardings
        return {n: _placed(p, places[n]) for n, p in abstract_params(self.model).items()}

    @property
    def shards(self) -> int:
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def hosts(self) -> int:
        return self.mesh.size // self.engine_mesh.size

    @property
    def engine_mesh(self) -> Mesh:
        """The devices of one host, on which it generates."""
        widest = widest_tensor(abstract_params(self.model), logical_axes(self.model))
        own = own_mesh(self.mesh, widest, self.mesh.devices.flat[0].process_index)
        if own.size == self.mesh.size or not self.host:
            return own
        return Mesh(np.array(self.host).reshape(own.devices.shape), own.axis_names, axis_types=own.axis_types)

    @property
    def engine_sizes(self) -> EngineConfig:
        return of_one_host(self.config.engine, self.hosts)

    @property
    def engine_params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The weights that an engine reads: the trainer's own, or its copy."""
        if self.engine_mesh is self.mesh:
            return self.params
        dtype, places = self.config.model.compute_dtype, param_shardings(self.engine_mesh, logical_axes(self.model))
        return {n: _placed(p, places[n]) for n, p in abstract_params(self.model, dtype).items()}

    @property
    def copied(self) -> int:
        """Bytes per device that the engine's copy of the weights takes."""
        return 0 if self.engine_mesh is self.mesh else bytes_per_device(self.engine_params)

    def state(self, optimizer: Any, trainable: tuple[str, ...]) -> TrainState:
        params = self.params
        opt_state = jax.eval_shape(optimizer.init, split_params(params, trainable)[0])
        places = opt_shardings(opt_state, self.shardings)
        step = _placed(jax.ShapeDtypeStruct((), jnp.int32), NamedSharding(self.mesh, PartitionSpec()))
        return TrainState(params, jax.tree.map(_placed, opt_state, places), step)


def abstract_policy(config: Config, devices: list[Any], host: Sequence[Any] = ()) -> Abstract:
    """The policy of `config.model`; `model.preset` names the architecture where a folder of weights is not here.

    `host`: as many devices as one of several hosts has, to compile the engine's programs for instead of its own.
    """
    source = config.model
    kind, _, where = source.init.partition(":")
    if kind == "hf" and not Path(where).is_dir():
        source = dataclasses.replace(source, init="random")
    policy = Abstract(config, architecture(source).config, make_mesh(config.mesh, devices), tuple(host))
    check_divisible({name: p.shape for name, p in abstract_params(policy.model).items()}, policy.shardings)
    return policy


def sft_programs(policy: Abstract) -> list[Program]:
    """A microbatch's gradient in every listed shape of pictures, and the optimizer's step."""
    config, sft = policy.config, policy.config.sft
    optimizer, trainable = _learning(policy, sft.steps)
    update = make_sft_step(
        policy.graphdef,
        optimizer,
        trainable,
        schedule=learning_rate(config.optim, sft.steps),
        param_shardings=policy.shardings,
    )
    spec = _pack_spec(policy, sft.batch_rows // sft.microbatches, sft.row_tokens)
    return _update_programs("SFT", policy, update, optimizer, trainable, spec, beside=0, microbatches=sft.microbatches)


def rl_programs(policy: Abstract) -> list[Program]:
    """The policy-gradient step, and log-probs without a gradient. The engine's pages lie beside them."""
    config = dataclasses.replace(policy.config, rl=with_algorithm(policy.config.rl))
    rl, temperature = config.rl, config.sampling.temperature
    steps = rl.steps * rl.minibatches
    optimizer, trainable = _learning(policy, steps)
    forbidden = np.zeros(policy.model.text.vocab_size, bool)
    forbidden[policy.model.image_token_id] = True
    update = make_rl_step(
        policy.graphdef,
        rl,
        optimizer,
        trainable,
        temperature=temperature,
        forbidden=forbidden,
        schedule=learning_rate(config.optim, steps),
        param_shardings=policy.shardings,
    )
    spec = _pack_spec(policy, rl.microbatch_rows, rl.row_tokens)
    held = bytes_per_device(_engine_memory(policy))
    # As many rows as trajectories: those of full length share no row.
    microbatches = -(-rl.prompts_per_step * rl.group_size // rl.minibatches // rl.microbatch_rows)
    programs = _update_programs(
        "RL", policy, update, optimizer, trainable, spec, beside=held, microbatches=microbatches
    )
    score = make_scorer(policy.graphdef, temperature=temperature, forbidden=forbidden)
    batch = abstract_batch(spec, spec.image_buckets[0], policy.mesh)
    held += bytes_per_device(policy.state(optimizer, trainable).opt_state)
    useful = forward_flops(policy.model, **_size(spec, spec.image_buckets[0])) / policy.mesh.size
    shape = _shape(spec, batch)
    return [*programs, Program("log-probs", shape, score, (policy.params, batch), held, policy.mesh, useful)]


def engine_programs(policy: Abstract) -> list[Program]:
    """Prefill and decode in their widest shapes, and the encoder in its first; of several hosts, those of one.

    The optimizer's moments lie beside them and, where the engine has a copy of the weights, the trainer's.
    """
    config, engine, model, mesh = policy.config, policy.engine_sizes, policy.model, policy.engine_mesh
    graphdef = build(model, compute_dtype=config.model.compute_dtype)[0]
    states = FINAL_STATES + len({text[:end] for text in STOP_STRINGS for end in range(len(text))})
    placement = Placement.on(mesh, model.text.num_kv_heads)
    functions = jitted(graphdef, placement)
    whole = NamedSharding(mesh, PartitionSpec())
    params, (pages, pool) = policy.engine_params, _engine_memory(policy)
    shapes = Shapes.of(engine, config.agent.max_total_tokens, groups_of(mesh))
    trainer = 0
    if config.recipe == "rl":
        state = policy.state(*_learning(policy, 1))
        trainer = bytes_per_device(state.opt_state) + (bytes_per_device(state.params) if policy.copied else 0)

    def on_every_device(tree: Any) -> Any:
        return jax.tree.map(lambda x: _placed(x, whole), tree)

    def rows(tree: Any) -> Any:
        def place(path, x):
            return _placed(x, (placement.grid if path[-1].name == "positions" else placement.rows) or whole)

        return jax.tree_util.tree_map_with_path(place, tree)

    piece = rows(
        batch_builder.empty_prefill(shapes.prefill_rows[-1], engine.prefill_tokens, shapes.prefill_widths[-1], 0)
    )
    step = rows(batch_builder.empty_decode(shapes.decode_rows[-1], engine.decode_tokens, shapes.decode_widths[-1], 0))
    vocabulary = model.text.vocab_size
    seed, table, forbidden = on_every_device(
        (
            jax.ShapeDtypeStruct((), jnp.uint32),
            jax.ShapeDtypeStruct((states, vocabulary), jnp.int32),
            jax.ShapeDtypeStruct((vocabulary,), jnp.bool_),
        )
    )
    bucket = image_buckets(config.image, config.agent, model, rows=1, row_tokens=config.agent.max_total_tokens)[0]
    vision, places = on_every_device(
        (_abstract_vision(bucket, model), jax.ShapeDtypeStruct((bucket.merged,), jnp.int32))
    )
    prefilled, decoded = (
        f"{x.shape[0]} × {{}} behind {x.shape[1] * engine.page_size:,}" for x in (piece.page_table, step.page_table)
    )

    def text(rows, tokens, logits):
        rows, cached = rows.page_table.shape[0], rows.page_table.shape[1] * engine.page_size
        return text_flops(model.text, rows=rows, tokens=tokens, cached=cached, logits=logits) / mesh.size

    described = [
        (
            *("prefill", prefilled.format(engine.prefill_tokens), (params, pages, pool, piece), 0),
            text(piece, engine.prefill_tokens, 0),
        ),
        (
            *("decode", decoded.format(engine.decode_tokens), (params, pages, seed, table, forbidden, step), pool),
            text(step, engine.decode_tokens, engine.decode_tokens),
        ),
    ]
    if bucket.rows:
        useful = vision_flops(model.vision, rows=bucket.rows, length=bucket.length) / mesh.size
        shape = f"{bucket.rows} × {bucket.length:,} patches"
        described.append(("encode", shape, (params, pool, vision, places), pages, useful))
    return [
        Program(
            *(name, shape, functions[name], arguments, trainer + (bytes_per_device(beside) if beside else 0), mesh),
            useful=useful,
            loops=engine.decode_tokens if name == "decode" else 0,
        )
        for name, shape, arguments, beside, useful in described
    ]


def abstract_batch(spec: PackSpec, bucket: VisionBucket, mesh: Mesh) -> PackedBatch:
    """A packed batch without numbers, placed as `update.place` does."""
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
    return jax.tree.map(_placed, batch, batch_shardings(batch, mesh))


def _update_programs(
    name: str,
    policy: Abstract,
    update: Update,
    optimizer: Any,
    trainable: tuple[str, ...],
    spec: PackSpec,
    beside: int,
    microbatches: int,
) -> list[Program]:
    state = policy.state(optimizer, trainable)
    places = policy.shardings
    gradients = {n: jax.ShapeDtypeStruct(state.params[n].shape, jnp.float32, sharding=places[n]) for n in trainable}
    functions = update.jitted()
    programs = []
    for number, bucket in enumerate(spec.image_buckets):
        batch = abstract_batch(spec, bucket, policy.mesh)
        programs.append(
            Program(
                f"{name} gradient",
                _shape(spec, batch),
                functions["accumulate"],
                (state.params, gradients, batch),
                beside + bytes_per_device(state.opt_state),
                policy.mesh,
                useful=training_flops(policy.model, **_size(spec, bucket), freeze=policy.config.model.freeze)
                / policy.mesh.size,
                repeats=0 if number else microbatches,  # a step is reckoned with the common shape
            )
        )
    apply = Program(f"{name} optimizer", "", functions["apply"], (state, gradients), beside, policy.mesh, repeats=1)
    return [*programs, apply]


def _size(spec: PackSpec, bucket: VisionBucket) -> dict[str, Any]:
    """A microbatch of full rows, each one trajectory, whose pictures fill the shape."""
    return {"rows": spec.rows, "tokens": spec.row_tokens, "pictures": (spec.groups * bucket.rows, bucket.length)}


def _learning(policy: Abstract, steps: int) -> tuple[Any, tuple[str, ...]]:
    config = policy.config
    return make_optimizer(config.optim, steps), trainable_names(logical_axes(policy.model), config.model.freeze)


def _pack_spec(policy: Abstract, rows: int, row_tokens: int) -> PackSpec:
    config, shards = policy.config, policy.shards
    buckets = image_buckets(
        config.image, config.agent, policy.model, rows=max(1, rows // shards), row_tokens=row_tokens
    )
    return PackSpec(policy.model, rows, row_tokens, buckets, groups=shards)


def _engine_memory(policy: Abstract) -> tuple[Pages, jax.ShapeDtypeStruct]:
    """Pages and pictures of the engine, placed as it does."""
    text, engine, mesh = policy.model.text, policy.engine_sizes, policy.engine_mesh
    dtype, groups = jnp.dtype(policy.config.model.compute_dtype), groups_of(mesh)
    pages = jax.eval_shape(
        lambda: empty_pages(
            text.num_layers, engine.pages, engine.page_size, text.num_kv_heads, text.head_dim, dtype, groups
        )
    )
    whole = NamedSharding(mesh, PartitionSpec())
    place = Placement.on(mesh, text.num_kv_heads).pages or whole
    pool = jax.ShapeDtypeStruct((engine.picture_tokens, text.hidden_size), dtype, sharding=whole)
    return jax.tree.map(lambda x: _placed(x, place), pages), pool


def _abstract_vision(bucket: VisionBucket, model: ModelConfig) -> VisionBatch:
    empty = vision_batch([], (bucket,), model.vision)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), empty)


def _shape(spec: PackSpec, batch: PackedBatch) -> str:
    patches = batch.vision.patches.shape
    return f"{spec.rows} × {spec.row_tokens:,} tokens, {patches[0]} × {patches[1] * patches[2]:,} patches"


def _placed(x: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
