"""Tests of the policy that trainer, engine and ahead-of-time compilation share."""

from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from dv2_jax.aot.programs import abstract_policy
from dv2_jax.checkpoint.policy_spec import load_policy_spec
from dv2_jax.config import Config, ConfigError, EngineConfig, MeshConfig, ModelSource
from dv2_jax.parallel.mesh import AXES
from dv2_jax.policy import Policy, load_policy
from dv2_jax.rollout.session import make_engine

CONFIG = Config(model=ModelSource(init="random"))


@dataclass(frozen=True)
class DescribedDevice:
    process_index: int
    id: int


def policy_on_hosts(hosts: int, devices_per_host: int) -> Policy:
    """Return a policy whose `fsdp` axis spans described devices of several hosts."""
    devices = [DescribedDevice(n // devices_per_host, n) for n in range(hosts * devices_per_host)]
    mesh = Mesh(np.array(devices, object).reshape(1, -1, 1), AXES)
    return Policy(CONFIG.model, load_policy_spec(CONFIG.model), None, mesh, ("</code>", "</tool_call>"))


def test_ahead_of_time_compilation_assembles_the_policy_of_a_run():
    """Catches: compiled shapes that are not those of the run, for example another number of stop states."""
    run, described = load_policy(CONFIG), abstract_policy(CONFIG, jax.devices()[:1])
    assert described.config == run.config
    assert described.num_stop_states == run.num_stop_states == len(run.stop_automaton().table)
    assert {n: (p.shape, p.dtype) for n, p in described.params.items()} == {
        n: (p.shape, p.dtype) for n, p in run.params.items()
    }
    specs = [policy.pack_spec(CONFIG, 8, 1024, key="rl.microbatch_rows") for policy in (run, described)]
    assert specs[0] == specs[1] and specs[0].groups == 1
    assert run.engine_config(CONFIG) == described.engine_config(CONFIG) == CONFIG.engine


def test_engine_and_trainer_mask_the_ids_of_one_policy():
    """Catches: an engine that may sample ids which the trainer's log-probs exclude."""
    policy = load_policy(CONFIG)
    forbidden = set(np.flatnonzero(policy.forbidden))
    assert policy.config.image_token_id in forbidden and policy.config.eos_token_id not in forbidden
    assert forbidden == {id_ for id_ in policy.tokenizer.control_ids if id_ != policy.config.eos_token_id} | set(
        range(policy.tokenizer.vocab_size, policy.config.text.vocab_size)
    )


def test_the_engine_of_a_session_has_the_architecture_of_the_policy():
    """Catches: a session that resolves `model.init` a second time and so disagrees with the trainer."""
    found = load_policy_spec(CONFIG.model)
    one_layer = replace(found, config=replace(found.config, text=replace(found.config.text, num_layers=1)))
    policy = load_policy(CONFIG, spec=one_layer)
    engine = make_engine(policy, CONFIG, policy.engine_config(CONFIG))
    assert engine.model_config.text.num_layers == 1


@pytest.mark.parametrize(("hosts", "devices"), [(1, 4), (2, 2), (4, 4)])
def test_hosts_divide_the_engine_and_the_shards_divide_the_rows(hosts, devices):
    """Catches: sizes of all hosts on each host, and rows that are not split over `data` x `fsdp`."""
    policy = policy_on_hosts(hosts, devices)
    assert policy.num_hosts == hosts and policy.data_shards == hosts * devices
    config = replace(CONFIG, engine=EngineConfig(slots=64, pages=2560, prefill_rows=16))
    sizes = policy.engine_config(config)
    assert (sizes.slots, sizes.pages, sizes.prefill_rows) == (64 // hosts, 2560 // hosts, 16 // hosts)
    assert config.engine.slots == 64
    assert policy.pack_spec(config, 16, 1024, key="rl.microbatch_rows").groups == hosts * devices
    with pytest.raises(ConfigError, match="rl.microbatch_rows = 17 is no multiple of the"):
        policy.pack_spec(config, 17, 1024, key="rl.microbatch_rows")


def test_a_policy_without_tokenizer_is_refused():
    """Catches: a run that fails only when it encodes its first prompt."""
    with pytest.raises(ConfigError, match="model.init = 'random' has no tokenizer"):
        load_policy(replace(CONFIG, model=ModelSource(init="random", preset="3b")))


def test_chat_uses_one_device_whatever_the_mesh():
    """Catches: a conversation that fails because its single sequence does not divide over a mesh."""
    assert load_policy(replace(CONFIG, mesh=MeshConfig(fsdp=16)), single_device=True).mesh is None
