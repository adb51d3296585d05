"""Two processes on the loopback interface agree on values that only one of them knows."""

import pytest

from dv2_jax.parallel import distributed
from dv2_jax.recipes.run import Interrupted, stop_together

PROGRAM = """
import json, sys
from dv2_jax.parallel import distributed
distributed.initialize()
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
me = distributed.process_index()
devices = jax.devices()
x = jax.make_array_from_process_local_data(
    NamedSharding(Mesh(devices, "d"), PartitionSpec("d")), jnp.full((1, 3), me + 1.0), (len(devices), 3))
distributed.barrier("before")
print(json.dumps({
    "main": distributed.is_main(),
    "processes": jax.process_count(),
    "agreed": distributed.broadcast_from_main({"next tick": "decode", "ü": [me, 1.5]}),
    "none": distributed.broadcast_from_main(None if me == 0 else "other"),
    "any": distributed.any_process(me == 1),
    "no one": distributed.any_process(False),
    "largest": distributed.process_max(100 + me),
    "gathered": distributed.allgather_json("x" * (me + 1)),
    "long": [len(text) for text in distributed.allgather_json("x" * (me * 2 * distributed.CHUNK_BYTES))],
    "shared": distributed.allgather_shards([[me, 10 * i] for i in distributed.shard_for_process(range(5))]),
    "sum": float(jnp.sum(x)),
}))
"""


def test_two_processes_agree_on_process_0s_value_and_see_each_others_flags(two_processes):
    """Catches a value that stays local (the processes would diverge), and ragged lengths that would hang."""
    first, second = two_processes(PROGRAM)
    assert (first.pop("main"), second.pop("main")) == (True, False)
    assert (
        first
        == second
        == {
            "processes": 2,
            "agreed": {"next tick": "decode", "ü": [0, 1.5]},
            "none": None,
            "any": True,
            "no one": False,
            "largest": 101,
            "gathered": ["x", "xx"],
            "long": [0, 2 * distributed.CHUNK_BYTES],
            "shared": [[0, 0], [1, 10], [0, 20], [1, 30], [0, 40]],
            "sum": 9.0,
        }
    )


def test_a_single_process_agrees_with_itself():
    assert distributed.broadcast_from_main({"a": 1}) == {"a": 1}
    assert distributed.allgather_json([1]) == [[1]]
    assert distributed.allgather_shards(distributed.shard_for_process(range(3))) == [0, 1, 2]
    assert distributed.process_max(7) == 7
    assert distributed.is_main() and not distributed.any_process(False)


def test_a_host_that_has_to_stop_stops_all(monkeypatch):
    """Catches: Ctrl-C that reaches one host only, while the others wait for what it would have sent."""
    with pytest.raises(Interrupted), stop_together():
        raise Interrupted
    with stop_together():
        pass
    monkeypatch.setattr(distributed, "any_process", lambda here: True)
    with pytest.raises(Interrupted), stop_together():
        pass


def test_half_an_explicit_setup_is_an_error_that_names_what_is_missing():
    """Catches: a launcher that omits the index on one host, which would otherwise train alone."""
    with pytest.raises(ValueError, match="JAX_PROCESS_ID missing"):
        distributed.initialize({"JAX_COORDINATOR_ADDRESS": "127.0.0.1:1", "JAX_NUM_PROCESSES": "2"})


def test_cpu_flags_are_set_unless_the_user_sets_them(monkeypatch):
    """Catches: a flag of the user that is overridden, and Eigen threads that compete with another CPU device."""
    monkeypatch.setattr(distributed.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(distributed, "_on_tpu_host", lambda _: False)
    environ = {"XLA_FLAGS": "--xla_dump_to=x"}
    distributed.initialize(environ)
    assert environ["XLA_FLAGS"] == "--xla_dump_to=x --xla_cpu_prefer_vector_width=512"
    environ = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_cpu_prefer_vector_width=256"}
    distributed.initialize(environ, cpu_devices=2)
    assert environ["XLA_FLAGS"].endswith("--xla_cpu_prefer_vector_width=256 --xla_cpu_multi_thread_eigen=false")
