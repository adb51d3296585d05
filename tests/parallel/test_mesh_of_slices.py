"""Meshes of slices and their shardings. Losses that are independent of the mesh are tested in tests/trainer."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from dv2_jax.aot.compile import topology_devices
from dv2_jax.config import ConfigError, MeshConfig
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import abstract_params, logical_axes
from dv2_jax.ops.logprobs import row_logprobs
from dv2_jax.parallel.mesh import (
    AXES,
    BATCH_AXES,
    all_gather_weight_for_loop,
    check_divisible,
    constrain_batch,
    make_mesh,
    param_shardings,
    use_mesh,
)

SIZES = ("3b", "7b", "32b", "72b")


@pytest.mark.parametrize("size", SIZES)
def test_every_large_weight_is_split_over_all_devices_of_a_pod(size):
    """Catches: a dimension without a rule, and a large weight that is replicated."""
    model = ModelConfig.preset(size)
    mesh = AbstractMesh((1, 16, 2), AXES)
    shardings = param_shardings(mesh, logical_axes(model))
    shapes = {name: p.shape for name, p in abstract_params(model).items()}
    check_divisible(shapes, shardings)
    for name, shape in shapes.items():
        shard, total = math.prod(shardings[name].shard_shape(shape)), math.prod(shape)
        assert total < 1e8 or shard * 32 == total, name


def test_a_dimension_without_a_rule_is_an_error():
    mesh = AbstractMesh((1, 2, 1), AXES)
    with pytest.raises(KeyError, match="text.new.kernel.*'experts'.*AXIS_RULES"):
        param_shardings(mesh, {"text.new.kernel": ("experts", "embed")})


def test_heads_that_a_mesh_does_not_divide_are_named():
    """Catches: JAX's own error, which names neither the parameter nor the fix."""
    model = ModelConfig.preset("7b")
    shardings = param_shardings(AbstractMesh((1, 1, 8), AXES), logical_axes(model))
    shapes = {name: p.shape for name, p in abstract_params(model).items()}
    with pytest.raises(ConfigError, match=r"mesh.tensor=8 does not divide a dimension of 4 of text.layers.k"):
        check_divisible(shapes, shardings)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=-1, fsdp=-1), "at most one is -1"),
        (MeshConfig(data=1, fsdp=3, tensor=1), "does not divide 8 devices"),
        (MeshConfig(data=1, fsdp=-1, tensor=3), "does not divide 8 devices"),
        (MeshConfig(data=1, fsdp=0), "at least 1"),
    ],
)
def test_a_mesh_that_does_not_use_every_device_once_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(config, list(range(8)))


def test_without_a_mesh_activations_and_weights_are_left_alone():
    """Catches: sharding constraints added to the program of a single device."""
    program = jax.make_jaxpr(lambda x: sum(all_gather_weight_for_loop(constrain_batch(x), x, "embed", "vocab")))(
        jax.numpy.ones((2, 2))
    )
    assert [str(equation.primitive) for equation in program.eqns] == ["add", "add"]


def test_the_gradient_of_the_head_is_reduced_before_layers_are_differentiated(no_compilation_cache):
    """Catches: the head's gradient reduced in every iteration of the loop over chunks, or only at the end of the backward
    pass (as XLA does by itself), until which the full gradient stays resident."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install 'dv2_jax[tpu]'")
    mesh = make_mesh(MeshConfig(data=1, fsdp=4), topology_devices("v5p:2x2x1"))
    width, vocabulary = 512, 32_768

    def shaped(shape, *axes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    def schedule(prepare):
        """Returns the sequence of the program's loops and of reductions of the head's gradient outside of them."""

        def loss(layers, head, x, targets):
            x, _ = jax.lax.scan(lambda x, w: (x + constrain_batch(jnp.tanh(x @ w)), None), x, layers)
            return row_logprobs(*prepare(x, head), targets, chunk=4 * 256)[0].sum()

        weights = shaped((8, width, width), None, "fsdp"), shaped((width, vocabulary), "fsdp")
        rows = shaped((4, 1024, width), BATCH_AXES), shaped((4, 1024), BATCH_AXES, dtype=jnp.int32)
        with use_mesh(mesh):
            text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*weights, *rows).compile().as_text()
        kinds = (
            r" (while)\(|\[(?:512|128),32768\]\S* (?:fusion\(.*calls=%)?(all-reduce|reduce-scatter|collective-permute)"
        )
        return [loop or "sum" for loop, _ in re.findall(kinds, text.split("\nENTRY ")[1])]

    forward_and_logits = ["while"] * 3
    assert schedule(lambda x, head: all_gather_weight_for_loop(x, head, "embed", "vocab")) == [
        *forward_and_logits,
        "sum",
        "while",
    ]
    without = schedule(lambda x, head: (x, jax.lax.with_sharding_constraint(head, PartitionSpec(None, None))))
    assert without == [*forward_and_logits, "while", "sum"]
