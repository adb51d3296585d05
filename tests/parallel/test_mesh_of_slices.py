"""The mesh and its table. That losses do not depend on the mesh is held by tests/recipes."""

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
    ROWS,
    check_divisible,
    gathered_beside,
    make_mesh,
    param_shardings,
    split_rows,
    under,
)

SIZES = ("3b", "7b", "32b", "72b")


@pytest.mark.parametrize("size", SIZES)
def test_every_large_weight_is_split_over_all_devices_of_a_pod(size):
    """Catches a dimension without a rule, and a weight of which every device would hold all."""
    model = ModelConfig.preset(size)
    mesh = AbstractMesh((1, 16, 2), AXES)
    places = param_shardings(mesh, logical_axes(model))
    shapes = {name: p.shape for name, p in abstract_params(model).items()}
    check_divisible(shapes, places)
    for name, shape in shapes.items():
        held, whole = math.prod(places[name].shard_shape(shape)), math.prod(shape)
        assert whole < 1e8 or held * 32 == whole, name


def test_a_dimension_without_a_rule_is_an_error():
    mesh = AbstractMesh((1, 2, 1), AXES)
    with pytest.raises(KeyError, match="text.new.kernel.*'experts'.*AXIS_RULES"):
        param_shardings(mesh, {"text.new.kernel": ("experts", "embed")})


def test_heads_that_a_mesh_does_not_divide_are_named():
    """Catches jax's own error, which names neither the parameter nor the fix."""
    model = ModelConfig.preset("7b")
    places = param_shardings(AbstractMesh((1, 1, 8), AXES), logical_axes(model))
    shapes = {name: p.shape for name, p in abstract_params(model).items()}
    with pytest.raises(ConfigError, match=r"mesh.tensor=8 does not divide a dimension of 4 of text.layers.k"):
        check_divisible(shapes, places)


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
    """Catches the single device pay for placement: nothing may be added to its program."""
    program = jax.make_jaxpr(lambda x: sum(gathered_beside(split_rows(x), x, "embed", "vocab")))(jax.numpy.ones((2, 2)))
    assert [str(equation.primitive) for equation in program.eqns] == ["add", "add"]


def test_the_heads_gradient_is_not_held_while_layers_are_differentiated(nothing_cached):
    """Catches it summed over the devices in every turn of the loop that makes it (which sends it as often), and only at the
    end (until which every device holds all of it); the latter is what the compiler does when left alone."""
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed: pip install 'dv2_jax[tpu]'")
    mesh = make_mesh(MeshConfig(data=1, fsdp=4), topology_devices("v5p:2x2x1"))
    width, vocabulary = 512, 32_768

    def shaped(shape, *axes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    def schedule(prepare):
        """The program's loops, and its sums of the head's gradient outside of them, in their order."""

        def loss(layers, head, x, targets):
            x, _ = jax.lax.scan(lambda x, w: (x + split_rows(jnp.tanh(x @ w)), None), x, layers)
            return row_logprobs(*prepare(x, head), targets, chunk=4 * 256)[0].sum()

        weights = shaped((8, width, width), None, "fsdp"), shaped((width, vocabulary), "fsdp")
        rows = shaped((4, 1024, width), ROWS), shaped((4, 1024), ROWS, dtype=jnp.int32)
        with under(mesh):
            text = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*weights, *rows).compile().as_text()
        kinds = (
            r" (while)\(|\[(?:512|128),32768\]\S* (?:fusion\(.*calls=%)?(all-reduce|reduce-scatter|collective-permute)"
        )
        return [loop or "sum" for loop, _ in re.findall(kinds, text.split("\nENTRY ")[1])]

    forward_and_logits = ["while"] * 3
    assert schedule(lambda x, head: gathered_beside(x, head, "embed", "vocab")) == [*forward_and_logits, "sum", "while"]
    left_alone = schedule(lambda x, head: (x, jax.lax.with_sharding_constraint(head, PartitionSpec(None, None))))
    assert left_alone == [*forward_and_logits, "while", "sum"]
