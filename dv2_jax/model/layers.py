"""Layers shared by the text and vision towers: parameters with logical axes as metadata, applied by `ops.dense`.

`Init.stack` prepends a layer dimension: a stacked module holds all layers of a tower and is scanned, one slice at a
time. Weights are stored in `param_dtype` and cast to the input's dtype at use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dv2_jax.ops.dense import LinearWeights, NormWeights, linear, norm_linear, rms_norm, swiglu_mlp

LAYER_AXIS = "layers"


@dataclass(frozen=True)
class Init:
    """Creates the parameters of a module: random key, dtype, and an optional leading layer dimension."""

    rngs: nnx.Rngs
    dtype: jnp.dtype
    layer_remat: bool = False  # complete layers are rematerialized; otherwise the parts that `ops.dense` names
    stack: int | None = None  # number of layers of a stacked module

    def stacked(self, layers: int) -> Init:
        return replace(self, stack=layers)

    def param(self, shape: tuple[int, ...], axes: tuple[str | None, ...], std: float | None, init_value: float = 0.0):
        """Returns a normal parameter of standard deviation `std`, or a constant one of `init_value` if `std` is None.

        Raises ValueError if `shape` and `axes` differ in rank.
        """
        if len(shape) != len(axes):
            raise ValueError(f"shape {shape} and axes {axes} differ in rank")
        if self.stack is not None:
            shape, axes = (self.stack, *shape), (LAYER_AXIS, *axes)
        if std is None:
            value = jnp.full(shape, init_value, self.dtype)
        else:
            value = std * jax.random.normal(self.rngs.params(), shape, self.dtype)
        return nnx.Param(value, logical_axes=axes)


class Linear(nnx.Module):
    """Dense layer over the trailing input dimensions, e.g. [D] -> [H hd] or [H hd] -> [D]."""

    def __init__(
        self,
        init: Init,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        axes: tuple[str | None, ...],
        *,
        bias: bool = False,
        scale: float = 1.0,
    ):
        fan_in = math.prod(inputs)
        self.inputs, self.outputs = inputs, outputs
        self.kernel = init.param((*inputs, *outputs), axes, std=scale * fan_in**-0.5)
        self.bias = init.param(outputs, axes[len(inputs) :], std=None) if bias else None

    @property
    def weights(self) -> LinearWeights:
        return LinearWeights(self.kernel[...], None if self.bias is None else self.bias[...])

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return linear(x, self.weights, len(self.inputs))


class RMSNorm(nnx.Module):
    """RMSNorm with a learned scale."""

    def __init__(self, init: Init, size: int, eps: float):
        self.eps, self.layer_remat = eps, init.layer_remat
        self.scale = init.param((size,), ("norm",), std=None, init_value=1.0)

    @property
    def weights(self) -> NormWeights:
        return NormWeights(self.scale[...], self.eps)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return rms_norm(x, self.weights, layer_remat=self.layer_remat)

    def project(self, x: Float[Array, "... D"], *layers: Linear) -> tuple[Float[Array, "..."], ...]:
        """Returns `layer(norm(x))` for each layer."""
        return norm_linear(x, self.weights, [layer.weights for layer in layers], layer_remat=self.layer_remat)


class GatedMLP(nnx.Module):
    """SwiGLU MLP: down(silu(gate y) * up y) of the normalized input y."""

    def __init__(self, init: Init, size: int, hidden: int, axes: tuple[str, str], *, bias: bool, residual_scale: float):
        embed, mlp = axes
        self.layer_remat = init.layer_remat
        self.gate = Linear(init, (size,), (hidden,), (embed, mlp), bias=bias)
        self.up = Linear(init, (size,), (hidden,), (embed, mlp), bias=bias)
        self.down = Linear(init, (hidden,), (size,), (mlp, embed), bias=bias, scale=residual_scale)

    def __call__(self, x: Float[Array, "... D"], norm: RMSNorm) -> Float[Array, "... D"]:
        gate, up, down = self.gate.weights, self.up.weights, self.down.weights
        return swiglu_mlp(x, norm.weights, gate, up, down, layer_remat=self.layer_remat)
