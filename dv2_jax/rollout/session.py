"""Everything that turns a question into a trajectory, assembled from a configuration in one place.

Policy, engine, protocol and tools, as the RL recipe, ``evaluate`` and ``chat`` alike use them::

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
from dv2_jax.agent.prompt_encoder import SpliceCodec
from dv2_jax.checkpoint.policy_spec import Architecture, architecture, load_weights
from dv2_jax.config import Config, ConfigError
from dv2_jax.data.loader import image_buckets
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.engine.buckets import of_one_host
from dv2_jax.engine.engine import Engine
from dv2_jax.engine.sampling import forbidden_ids
from dv2_jax.engine.stop_strings import StopAutomaton
from dv2_jax.model.params import GraphDef, Params, abstract_params, build, logical_axes
from dv2_jax.parallel import distributed, malloc
from dv2_jax.parallel.mesh import widest_tensor
from dv2_jax.parallel.weight_sync import own_mesh, to_own_devices
from dv2_jax.rollout.scheduler import RolloutScheduler
from dv2_jax.rollout.tools_client import open_tools
from tools_service.client import ToolsClient


@dataclass(frozen=True)
class Session:
    """An engine with its tools. ``forbidden`` are the ids it never samples; the trainer masks the same."""

    config: Config
    architecture: Architecture
    graphdef: GraphDef
    tokenizer: Tokenizer
    codec: SpliceCodec
    engine: Engine
    tools: ToolsClient
    forbidden: Bool[np.ndarray, "V"]
    mesh: Mesh | None  # of all hosts' devices, where the policy's weights lie; None: one device
    to_engine: Callable[[Params], Params] | None = None  # copies weights to the engine's places; None: it shares them

    def set_params(self, params: Params, version: int) -> None:
        """New weights; compiles what is not compiled yet when they are the first. Every host calls it."""
        self._give(params, version)
        if not self.engine.compiled_programs():
            self.engine.warmup()
            malloc.give_back()

    def _give(self, params: Params, version: int) -> None:
        self.release()  # the old copy goes before the new one comes
        self.engine.set_params(params if self.to_engine is None else self.to_engine(params), version)

    def release(self) -> None:
        """Drops the engine's copy of the weights, where it has one: their room is for learning until new ones come."""
        if self.to_engine is not None:
            self.engine.set_params(None, self.engine.version)

    def load_params(self, *, warmup: bool = True) -> None:
        """The weights of ``model.init``, as version 0. Without ``warmup`` a shape is compiled when it first comes."""
        params = load_weights(self.config.model, self.architecture.config, mesh=self.mesh, seed=self.config.run.seed)
        if warmup:
            self.set_params(params, 0)
        else:
            self._give(params, 0)

    def scheduler(self, *, temperature: float | None = None, tools: ToolsClient | None = None) -> RolloutScheduler:
        """A scheduler on this engine; by default at the configured temperature and with this session's tools.

        Any number may be made (sampling and greedy, say); one of them runs at a time.
        """
        sampling = self.config.sampling
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        return RolloutScheduler(
            self.engine,
            tools or self.tools,
            self.codec,
            self.tokenizer,
            self.config.agent,
            self.config.tools,
            sampling,
        )

    def recompilations(self) -> int:
        """Programs that the engine compiled after its warm-up."""
        return self.engine.recompilations


@contextmanager
def open_session(config: Config, run_dir: str | Path, *, mesh: Mesh | None = None) -> Iterator[Session]:
    """Assemble policy (without weights), engine and tools for ``config``; the tools end with the block.

    Of several hosts each has an engine on its own devices, and tools of its own where ``tools.address`` is empty. What
    `mesh.fsdp` splits for learning, the engine has split by heads and features: a copy of the weights.
    """
    described = architecture(config.model)
    if described.tokenizer_file is None:
        raise ConfigError(f"model.init = {config.model.init!r} has no tokenizer: it cannot answer questions")
    tokenizer = Tokenizer.from_file(described.tokenizer_file)
    graphdef, _ = build(described.config, compute_dtype=config.model.compute_dtype)
    own, to_engine = mesh, None
    if mesh is not None:
        axes = logical_axes(described.config)
        widest = widest_tensor(abstract_params(described.config), axes)
        own = own_mesh(mesh, widest)
        if own is not mesh:
            to_engine = to_own_devices(mesh, widest, axes, config.model.compute_dtype)
        config = replace(config, engine=of_one_host(config.engine, distributed.process_count()))
    engine, forbidden = make_engine(config, described, graphdef, tokenizer, own)
    codec = SpliceCodec(tokenizer, config.image, config.agent)
    with open_tools(config, run_dir) as tools:
        yield Session(config, described, graphdef, tokenizer, codec, engine, tools, forbidden, mesh, to_engine)


def make_engine(
    config: Config, described: Architecture, graphdef: GraphDef, tokenizer: Tokenizer, mesh: Mesh | None = None
) -> tuple[Engine, Bool[np.ndarray, "V"]]:
    """The engine of a policy, and the ids that it never samples."""
    eos = frozenset({described.config.eos_token_id})
    forbidden = forbidden_ids(tokenizer, described.config.text.vocab_size, eos)
    buckets = image_buckets(
        config.image,
        config.agent,
        described.config,
        rows=1,
        row_tokens=config.agent.max_total_tokens,
    )
    engine = Engine(
        graphdef,
        described.config,
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
