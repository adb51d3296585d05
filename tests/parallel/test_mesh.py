"""Logical axis rules and mesh sizes: errors name the key, the value and the fix."""

from __future__ import annotations

import re

import jax
import pytest

from dv2_jax.config import ConfigError, MeshConfig
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import logical_axes
from dv2_jax.parallel.mesh import AXES, AXIS_RULES, device_mesh, make_mesh, param_shardings


def test_every_dimension_of_every_parameter_has_a_rule_and_no_parameter_uses_an_axis_twice():
    """Catches: a mesh axis used twice for one parameter, which fails only when the model is loaded on a slice."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    for size in ("3b", "7b", "32b", "72b"):
        axes = logical_axes(ModelConfig.preset(size))
        for name, sharding in param_shardings(mesh, axes).items():
            used = [axis for axis in sharding.spec if axis is not None]
            assert len(used) == len(set(used)) and set(used) <= set(AXES), name
    assert {name for names in axes.values() for name in names if name is not None} <= set(AXIS_RULES)


def test_an_axis_without_a_rule_is_named_with_its_parameter():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.raises(KeyError, match="text.router.kernel.*'experts'.*AXIS_RULES"):
        param_shardings(mesh, {"text.norm.scale": ("norm",), "text.router.kernel": ("embed", "experts")})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (MeshConfig(data=1, fsdp=16, tensor=1), "mesh.data=1, mesh.fsdp=16, mesh.tensor=1: does not divide 1 devices"),
        (MeshConfig(data=1, fsdp=-1, tensor=2), "does not divide 1 devices"),
        (MeshConfig(data=-1, fsdp=-1, tensor=1), "at most one is -1"),
        (MeshConfig(data=0, fsdp=-1, tensor=1), "mesh.data=0"),
        (
            MeshConfig(data=1, fsdp=1, context=2),
            "mesh.data=1, mesh.fsdp=1, mesh.context=2, mesh.tensor=1: does not divide",
        ),
        (MeshConfig(data=1, fsdp=1, context=0), "mesh.context=0"),
    ],
)
def test_sizes_that_do_not_use_every_device_once_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make_mesh(sizes, jax.devices()[:1])


def test_one_device_is_no_mesh_and_no_excuse_for_a_mesh_of_several():
    """Catches: a configuration for a slice that silently runs unsharded on a single device."""
    assert jax.device_count() == 1
    assert device_mesh(MeshConfig()) is None
    with pytest.raises(ConfigError, match="mesh.fsdp=16"):
        device_mesh(MeshConfig(fsdp=16))
