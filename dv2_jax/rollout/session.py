"""Assembles engine, prompt encoder and tools for a policy, for RL, `evaluate` and `chat`.

::

    policy = load_policy(config)
    with open_session(policy, config, run_dir) as session:
        session.load_params()
        trajectories = session.scheduler(temperature=1.0).run(requests)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp

from dv2_jax.agent.prompt_encoder import PromptEncoder
from dv2_jax.config import AgentConfig, Config, EngineConfig
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.engine.engine import Engine
from dv2_jax.model.params import Params
from dv2_jax.parallel import malloc
from dv2_jax.parallel.weight_sync import WeightSync
from dv2_jax.policy import Policy
from dv2_jax.rollout.local_calls import LocalCallRunner
from dv2_jax.rollout.scheduler import RolloutScheduler, ToolBackend
from dv2_jax.rollout.tools_client import open_tools


@dataclass(frozen=True)
class RolloutSession:
    """An engine with its tools. `config` is that of the run; `engine_config` has the engine sizes of this host."""

    config: Config
    policy: Policy
    engine_config: EngineConfig
    prompt_encoder: PromptEncoder
    engine: Engine
    tools: LocalCallRunner
    weight_sync: WeightSync | None = None  # makes the engine's copy of the weights; None: shared with the trainer

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the policy."""
        return self.prompt_encoder.tokenizer

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

    def load_params(self, init: str = "", *, warmup: bool = True) -> None:
        """Loads the weights of `init`, or of `model.init`, as version 0.

        Without `warmup`, programs are compiled on first use.
        """
        params = self.policy.load_weights(self.config.run.seed, init)
        if warmup:
            self.set_params(params, 0)
        else:
            self._sync_weights(params, 0)

    def scheduler(
        self,
        *,
        temperature: float | None = None,
        tools: ToolBackend | None = None,
        agent: AgentConfig | None = None,
    ) -> RolloutScheduler:
        """Returns a scheduler on this engine, by default with the configured temperature and this session's tools.

        `agent` replaces the prompt, tools and limits of the configuration; generation also stops at the closing tags of
        the session's other tools.

        Several schedulers may exist, for example a sampling and a greedy one, but only one may run at a time.
        """
        sampling = self.config.sampling
        if temperature is not None:
            sampling = replace(sampling, temperature=temperature)
        encoder = self.prompt_encoder
        if agent is not None:
            encoder = PromptEncoder(self.tokenizer, self.config.image, agent)
        return RolloutScheduler(
            self.engine,
            tools or self.tools,
            encoder,
            agent or self.config.agent,
            self.config.tools,
            sampling,
        )

    def recompilations(self) -> int:
        """Returns the number of programs that the engine compiled after its warm-up."""
        return self.engine.recompilations


@contextmanager
def open_session(policy: Policy, config: Config, run_dir: str | Path) -> Iterator[RolloutSession]:
    """Builds the engine and the tools of `config` for a policy, without weights; closes the tools when the block ends.

    Each host has an engine on its local devices and, if `tools.address` is empty, its own tools service. If the mesh
    has an `fsdp` axis or several hosts, the engine holds a tensor-parallel copy of the weights.

    Raises:
        ConfigError: a tensor or context group spans hosts, or the hosts do not divide the sizes of the engine.
    """
    engine_config = policy.engine_config(config)
    engine = make_engine(policy, config, engine_config)
    if policy.tokenizer is None:
        raise ValueError("a policy of described devices has no tokenizer: it cannot roll out")
    prompt_encoder = PromptEncoder(policy.tokenizer, config.image, config.agent)
    weight_sync = policy.make_weight_sync()
    with open_tools(config, run_dir) as tools:
        yield RolloutSession(config, policy, engine_config, prompt_encoder, engine, tools, weight_sync)


def make_engine(policy: Policy, config: Config, engine_config: EngineConfig) -> Engine:
    """Returns the engine of one host, whose sizes are those of `engine_config`."""
    max_tokens = config.agent.max_total_tokens
    return Engine(
        policy.engine_graphdef,
        policy.config,
        engine_config,
        policy.image_buckets(config, rows=1, row_tokens=max_tokens),
        stop=policy.stop_automaton(),
        max_tokens_per_sequence=max_tokens,
        seed=config.run.seed,
        forbidden=policy.forbidden,
        compute_dtype=jnp.dtype(policy.source.compute_dtype),
        mesh=policy.engine_mesh,
    )
