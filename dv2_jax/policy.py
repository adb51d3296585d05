"""The policy without its weights, assembled once per process: architecture, tokenizer, mesh, shardings and shapes.

`load_policy(config)` assembles it for the attached devices; `train`, `evaluate` and `chat` pass it on and resolve nothing
again. `aot.programs.abstract_policy` assembles the same object for described devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Bool

from dv2_jax.agent.tools.base import Tool
from dv2_jax.agent.tools.tool_registry import run_tools, stop_strings
from dv2_jax.checkpoint.policy_spec import PolicySpec, load_policy_spec, load_weights
from dv2_jax.config import Config, ConfigError, EngineConfig, ModelSource
from dv2_jax.data.loader import image_buckets
from dv2_jax.data.packing import PackSpec
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.engine.buckets import per_host
from dv2_jax.engine.sampling import forbidden_ids
from dv2_jax.engine.stop_strings import FINAL_STATES, StopAutomaton
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import GraphDef, Params, abstract_params, build, logical_axes
from dv2_jax.model.vision_inputs import VisionBucket
from dv2_jax.parallel.mesh import (
    check_divisible,
    device_mesh,
    max_tensor_parallelism,
    num_data_shards,
    param_shardings,
)
from dv2_jax.parallel.weight_sync import WeightSync, local_mesh, make_weight_sync


@dataclass(frozen=True, eq=False)
class Policy:
    """The static parts of a policy, shared by the trainer, the engine and ahead-of-time compilation.

    The trainer's weights are on `mesh`, the engine's on `engine_mesh`: the same mesh, or this host's part of it.
    """

    source: ModelSource  # initial weights and numeric types
    spec: PolicySpec
    tokenizer: Tokenizer | None  # None for described devices
    mesh: Mesh | None  # None on a single device
    stop_strings: tuple[str, ...]  # closing tags of the run's tools: each ends a generated turn
    host_devices: tuple[Any, ...] = ()  # described devices of one host, for which the engine is compiled

    @property
    def config(self) -> ModelConfig:
        """The architecture."""
        return self.spec.config

    @cached_property
    def graphdef(self) -> GraphDef:
        """The forward pass of the trainer, with rematerialization if `model.remat` is set."""
        return build(self.config, compute_dtype=self.source.compute_dtype, remat=self.source.remat)[0]

    @cached_property
    def engine_graphdef(self) -> GraphDef:
        """The forward pass of the engine, which has no backward pass and no rematerialization."""
        return build(self.config, compute_dtype=self.source.compute_dtype)[0]

    @cached_property
    def logical_axes(self) -> Mapping[str, tuple[str | None, ...]]:
        """The logical axis names of every parameter."""
        return logical_axes(self.config)

    @cached_property
    def shardings(self) -> dict[str, NamedSharding] | None:
        """The sharding of every parameter in the trainer; None on a single device."""
        return None if self.mesh is None else param_shardings(self.mesh, self.logical_axes)

    @cached_property
    def params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The abstract fp32 parameters of the trainer with their shardings."""
        return with_shardings(abstract_params(self.config), self.shardings)

    @property
    def data_shards(self) -> int:
        """The number of shards of the trainer's batch dimension."""
        return num_data_shards(self.mesh)

    @property
    def num_hosts(self) -> int:
        """The number of hosts; each generates with its own engine."""
        return 1 if self.mesh is None else self.mesh.size // self.engine_mesh.size

    @cached_property
    def engine_mesh(self) -> Mesh | None:
        """The mesh of one host's devices, on which it generates; None on a single device.

        Raises:
            ConfigError: a tensor or context group spans several hosts.
        """
        if self.mesh is None:
            return None
        process = self.mesh.devices.flat[0].process_index if self.host_devices else None
        own_mesh = local_mesh(self.mesh, self._max_tensor, process)
        if own_mesh.size == self.mesh.size or not self.host_devices:
            return own_mesh
        devices = np.array(self.host_devices).reshape(own_mesh.devices.shape)
        return Mesh(devices, own_mesh.axis_names, axis_types=own_mesh.axis_types)

    @property
    def _max_tensor(self) -> int:
        return max_tensor_parallelism(abstract_params(self.config), self.logical_axes)

    @property
    def engine_has_copy(self) -> bool:
        """True if the engine has its own tensor-parallel copy of the weights, in the compute dtype."""
        return self.engine_mesh is not self.mesh

    @cached_property
    def engine_params(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The abstract weights that the engine reads: the trainer's, or the copy that weight sync makes."""
        if not self.engine_has_copy:
            return self.params
        shardings = param_shardings(self.engine_mesh, self.logical_axes)
        return with_shardings(abstract_params(self.config, self.source.compute_dtype), shardings)

    def engine_config(self, config: Config) -> EngineConfig:
        """Return the engine sizes of one host.

        Raises:
            ConfigError: the hosts do not divide slots, pages or prefill rows.
        """
        return per_host(config.engine, self.num_hosts)

    def make_weight_sync(self) -> WeightSync | None:
        """Build the collective function that makes the engine's copy of the weights; None if the engine has none."""
        if not self.engine_has_copy:
            return None
        return make_weight_sync(self.mesh, self._max_tensor, self.logical_axes, self.source.compute_dtype)

    @property
    def eos_ids(self) -> frozenset[int]:
        """The ids that end a generated turn."""
        return frozenset({self.config.eos_token_id})

    @cached_property
    def forbidden(self) -> Bool[np.ndarray, "V"]:
        """The ids that are never sampled: the engine and the trainer's log-probs mask them alike.

        Without a tokenizer only the image placeholder is masked: the mask is data, the programs are the same.
        """
        vocab_size = self.config.text.vocab_size
        if self.tokenizer is not None:
            return forbidden_ids(self.tokenizer, vocab_size, self.eos_ids)
        return np.arange(vocab_size) == self.config.image_token_id

    def stop_automaton(self) -> StopAutomaton:
        """Compile the stop strings for the tokenizer."""
        return StopAutomaton(self.tokenizer, self.stop_strings, self.eos_ids)

    @property
    def num_stop_states(self) -> int:
        """The number of states of `stop_automaton()`."""
        return FINAL_STATES + len({"", *(text[:end] for text in self.stop_strings for end in range(len(text)))})

    def image_buckets(self, config: Config, rows: int, row_tokens: int) -> tuple[VisionBucket, ...]:
        """Return the image buckets for one group of `rows` rows of `row_tokens` tokens."""
        return image_buckets(config.image, config.agent, self.config, rows=rows, row_tokens=row_tokens)

    def pack_spec(self, config: Config, rows: int, row_tokens: int, *, key: str) -> PackSpec:
        """Return the shapes of a microbatch of `rows` rows, whose number is configured by `key`.

        Raises:
            ConfigError: the data shards of the mesh do not divide the rows.
        """
        shards = self.data_shards
        if rows % shards:
            raise ConfigError(f"{key} = {rows} is no multiple of the {shards} data shards of the mesh")
        buckets = self.image_buckets(config, rows // shards, row_tokens)
        return PackSpec(self.config, rows, row_tokens, buckets, groups=shards)

    def load_weights(self, seed: int, init: str = "") -> Params:
        """Load fp32 weights of this architecture, sharded for the trainer: those of `init`, or of `model.init`."""
        source = replace(self.source, init=init) if init else self.source
        return load_weights(source, self.config, shardings=self.shardings, seed=seed)


def load_policy(config: Config, *, spec: PolicySpec | None = None, single_device: bool = False) -> Policy:
    """Assemble the policy of `config.model` for all attached devices, or for one, without loading weights.

    `spec` replaces the architecture and tokenizer that `model.init` names.

    Raises:
        ConfigError: `model.init` is unknown or has no tokenizer, or the mesh does not fit the devices or the architecture.
    """
    spec = load_policy_spec(config.model) if spec is None else spec
    if spec.tokenizer_file is None:
        raise ConfigError(
            f"model.init = {config.model.init!r} has no tokenizer: use hf:/path, checkpoint:/path or a package model"
        )
    mesh = None if single_device else device_mesh(config.mesh)
    return assemble_policy(config.model, spec, mesh, run_tools(config.agent), Tokenizer.from_file(spec.tokenizer_file))


def assemble_policy(
    source: ModelSource,
    spec: PolicySpec,
    mesh: Mesh | None,
    tools: Sequence[Tool],
    tokenizer: Tokenizer | None = None,
    host_devices: Sequence[Any] = (),
) -> Policy:
    """Assemble the policy of a run with `tools` for a mesh, whose devices may be described ones.

    Raises:
        ConfigError: a mesh axis does not divide a dimension of a parameter.
    """
    policy = Policy(source, spec, tokenizer, mesh, stop_strings(tools), tuple(host_devices))
    if policy.shardings is not None:
        check_divisible({name: p.shape for name, p in policy.params.items()}, policy.shardings)
    return policy


def with_shardings(
    arrays: Mapping[str, jax.ShapeDtypeStruct], shardings: Mapping[str, NamedSharding] | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return abstract arrays with their shardings; without shardings they are unchanged."""
    if shardings is None:
        return dict(arrays)
    return {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=shardings[n]) for n, a in arrays.items()}
