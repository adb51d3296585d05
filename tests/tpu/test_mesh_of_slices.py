"""The mesh and its table. That losses do not depend on the mesh is held by tests/recipes."""

import math

import jax
import pytest
from jax.sharding import AbstractMesh

from dv2_jax.config import ConfigError, MeshConfig
from dv2_jax.model.config import ModelConfig
from dv2_jax.model.params import abstract_params, logical_axes
from dv2_jax.parallel.mesh import AXES, check_divisible, gathered_beside, make_mesh, param_shardings, split_rows

SIZES = ("3b", "7b", "32b", "72b")


@pytest.mark.parametrize("size", SIZES)
def test_every_large_weight_is_split_over_all_devices_of_a_pod(size):
    """Sees a dimension without a rule, and a weight of which every device would hold all."""
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
    """Sees jax's own error, which names neither the parameter nor the fix."""
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
    """Sees the single device pay for placement: nothing may be added to its program."""
    program = jax.make_jaxpr(lambda x: sum(gathered_beside(split_rows(x), x, "embed", "vocab")))(jax.numpy.ones((2, 2)))
    assert [str(equation.primitive) for equation in program.eqns] == ["add", "add"]
