"""Assembles policy, engine, prompt encoder and tools from a configuration, for RL, `evaluate` and `chat`.

::

    with open_session(config, run_dir) as session:
        session.load_params()
        trajectories = session.scheduler(temperature=1.0).run(requests)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

from dv2_jax.agent.parser import STOP_STRINGS
from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.checkpoint.policy_spec import PolicySpec, load_policy_spec, load_weights
from dv2_jax.config import Config, ConfigError
from dv2_jax.data.loader import image_buckets
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.engine.buckets import per_host
from dv2_jax.engine.engine import Engine
from dv2_jax.engine.sampling import forbidden_ids
from dv2_jax.engine.stop_strings import StopAutomaton
from dv2_jax.model.params import GraphDef, Params, abstract_params, build, logical_axes
from dv2_jax.parallel import distributed, malloc
from dv2_jax.parallel.mesh import max_tensor_parallelism
from dv2_jax.parallel.weight_sync import local_mesh, make_weight_sync
from dv2_jax.rollout.scheduler import RolloutScheduler
from dv2_jax.rollout.tools_client import open_tools
from tools_service.client import ToolsClient


@dataclass(frozen=True)
class RolloutSession:
    """An engine with its tools. `forbidden` masks the ids that it never samples; the trainer applies the same mask."""

    config: Config
    spec: PolicySpec
    graphdef: GraphDef
    tokenizer: Tokenizer
    prompt_encoder: PromptEncoder
    engine: Engine
    tools: ToolsClient
    forbidden: Bool[np.ndarray, "V"]
    mesh: Mesh | None  # mesh of the policy's weights over all hosts; None for a single device
    weight_sync: Callable[[Params], Params] | None = None  # makes the engine's copy of the weights; None: shared

    def set_params(self, params: Params, version: int) -> None:
        """Sets the engine's weights and compiles its programs on the first call. Every host calls it."""
        self._sync_weights(params, version)
        if not self.engine.compiled_programs():
            self.engine.warmup()
            malloc.malloc_trim()

    def _sync_weights(self, params: Params, version: int) -> None:
        self.drop_engine_weights()  # free the old copy before the new one is allocated
        self.engine.set_params(params if self.weight_sync is None else self.weight_sync(params), version)

    def drop_engine_weights(self) -> None:
        """Frees the engine's copy of the weights, if it has one, so that a training step can use the memory."""
        if self.weight_sync is not None:
            self.engine.set_params(None, self.engine.version)

    def load_params(self, *, warmup: bool = True) -> None:
        """Loads the weights of `model.init` as version 0. Without `warmup`, programs are compiled on first use."""
        params = load_weights(self.config.model, self.spec.config, mesh=self.mesh, seed=self.config.run.seed)
        if warmup:
            self.set_params(params, 0)
        else:
            self._sync_weights(params, 0)

    def scheduler(self, *, temperature: float | None = None, tools: ToolsClient | None = None) -> RolloutScheduler:
        """Returns a scheduler on this engine, by default with the configured temperature and this session's tools.

        Several schedulers may exist, for example a sampling and a greedy one, but only one may run at a time.
        """
        sampling = self.config.sampling
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        return RolloutScheduler(
            self.engine,
            tools or self.tools,
            self.prompt_encoder,
            self.tokenizer,
            self.config.agent,
            self.config.tools,
            sampling,
        )

    def recompilations(self) -> int:
        """Returns the number of programs that the engine compiled after its warm-up."""
        return self.engine.recompilations


@contextmanager
def open_session(config: Config, run_dir: str | Path, *, mesh: Mesh | None = None) -> Iterator[RolloutSession]:
    """Builds policy (without weights), engine and tools for `config`; closes the tools when the block ends.

    Each host has an engine on its local devices and, if `tools.address` is empty, its own tools service. If the mesh
    has an `fsdp` axis or several hosts, the engine holds a tensor-parallel copy of the weights.

    Raises:
        ConfigError: if the policy has no tokenizer.
    """
    spec = load_policy_spec(config.model)
    if spec.tokenizer_file is None:
        raise ConfigError(f"model.init = {config.model.init!r} has no tokenizer: it cannot answer questions")
    tokenizer = Tokenizer.from_file(spec.tokenizer_file)
    graphdef, _ = build(spec.config, compute_dtype=config.model.compute_dtype)
    own, weight_sync = mesh, None
    if mesh is not None:
        axes = logical_axes(spec.config)
        widest = max_tensor_parallelism(abstract_params(spec.config), axes)
        own = local_mesh(mesh, widest)
        if own is not mesh:
            weight_sync = make_weight_sync(mesh, widest, axes, config.model.compute_dtype)
        config = replace(config, engine=per_host(config.engine, distributed.process_count()))
    engine, forbidden = make_engine(config, spec, graphdef, tokenizer, own)
    prompt_encoder = PromptEncoder(tokenizer, config.image, config.agent)
    with open_tools(config, run_dir) as tools:
        yield RolloutSession(
            config, spec, graphdef, tokenizer, prompt_encoder, engine, tools, forbidden, mesh, weight_sync
        )


def make_engine(
    config: Config, spec: PolicySpec, graphdef: GraphDef, tokenizer: Tokenizer, mesh: Mesh | None = None
) -> tuple[Engine, Bool[np.ndarray, "V"]]:
    """Returns the engine of a policy and the mask of ids that it never samples."""
    eos = frozenset({spec.config.eos_token_id})
    forbidden = forbidden_ids(tokenizer, spec.config.text.vocab_size, eos)
    buckets = image_buckets(
        config.image,
        config.agent,
        spec.config,
        rows=1,
        row_tokens=config.agent.max_total_tokens,
    )
    engine = Engine(
        graphdef,
        spec.config,
        config.engine,
        buckets,
        stop=StopAutomaton(tokenizer, STOP_STRINGS, eos),
        max_tokens_per_sequence=config.agent.max_total_tokens,
        seed=config.run.seed,
        forbidden=forbidden,
        compute_dtype=config.model.compute_dtype,
        mesh=mesh,
    )
    return engine, forbidden
