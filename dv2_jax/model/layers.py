"""The few layers both towers are made of. Every parameter carries its logical axes as metadata.

``stack`` prepends a layer dimension: a stacked module holds all layers of a tower and is scanned, one
slice at a time. Weights are kept in ``param_dtype`` and cast to the dtype of the input where they are used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

LAYER_AXIS = "layers"


@dataclass(frozen=True)
class Init:
    """How a module makes its parameters."""

    rngs: nnx.Rngs
    dtype: jnp.dtype
    stack: int | None = None  # number of layers of a stacked module

    def stacked(self, layers: int) -> Init:
        return Init(self.rngs, self.dtype, layers)

    def param(self, shape: tuple[int, ...], axes: tuple[str | None, ...], std: float | None, fill: float = 0.0):
        """Normal with ``std``, or constant ``fill`` when ``std`` is None."""
        if len(shape) != len(axes):
            raise ValueError(f"shape {shape} and axes {axes} differ in rank")
        if self.stack is not None:
            shape, axes = (self.stack, *shape), (LAYER_AXIS, *axes)
        if std is None:
            value = jnp.full(shape, fill, self.dtype)
        else:
            value = std * jax.random.normal(self.rngs.params(), shape, self.dtype)
        return nnx.Param(value, logical_axes=axes)


class Linear(nnx.Module):
    """A matrix product over the trailing input dimensions, e.g. [D] -> [H hd] or [H hd] -> [D]."""

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

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        kernel = self.kernel[...].astype(x.dtype)
        y = jax.lax.dot_general(
            x, kernel, ((tuple(range(x.ndim - len(self.inputs), x.ndim)), tuple(range(len(self.inputs)))), ((), ()))
        )
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) in fp32, cast back, then scaled (the order transformers uses)."""

    def __init__(self, init: Init, size: int, eps: float):
        self.eps = eps
        self.scale = init.param((size,), ("norm",), std=None, fill=1.0)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.scale[...].astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(silu(gate x) * up x).

    The backward pass works the product out again from its factors, unless the whole layer is (``remat``): for a few
    operations per element, a third of what the module would keep.
    """

    def __init__(
        self,
        init: Init,
        size: int,
        hidden: int,
        axes: tuple[str, str],
        *,
        bias: bool,
        residual_scale: float,
        remat: bool = False,
    ):
        embed, mlp = axes
        self.product = _gated if remat else _gated_again
        self.gate = Linear(init, (size,), (hidden,), (embed, mlp), bias=bias)
        self.up = Linear(init, (size,), (hidden,), (embed, mlp), bias=bias)
        self.down = Linear(init, (hidden,), (size,), (mlp, embed), bias=bias, scale=residual_scale)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        flat = x.reshape(-1, x.shape[-1])  # of several leading dimensions a CPU's backward pass takes 1.7 times as long
        return self.down(self.product(self.gate(flat), self.up(flat))).reshape(x.shape)


def _gated(gate: Float[Array, "N F"], up: Float[Array, "N F"]) -> Float[Array, "N F"]:
    return jax.nn.silu(gate) * up


_gated_again = jax.checkpoint(_gated)
