"""The few layers both towers are made of. Every parameter carries its logical axes as metadata.

``stack`` prepends a layer dimension: a stacked module holds all layers of a tower and is scanned, one
slice at a time. Weights are kept in ``param_dtype`` and cast to the dtype of the input where they are used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dv2_jax.ops.recompute import after, recomputed

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
        return self.biased(y)

    def biased(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """The product, made elsewhere, with this layer's bias."""
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class RMSNorm(nnx.Module):
    """x / rms(x) in fp32, cast back, then scaled (the order transformers uses).

    The backward pass works x / rms(x) out again instead of keeping it, unless the whole layer is (``remat``).
    """

    def __init__(self, init: Init, size: int, eps: float, *, remat: bool = False):
        self.eps, self.remat = eps, remat
        self.scale = init.param((size,), ("norm",), std=None, fill=1.0)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        normed = partial(_normed, self.eps)
        return normed(x, self.scale[...]) if self.remat else recomputed(normed, x, self.scale[...])


def _normed(eps: float, x: Float[Array, "... D"], scale: Float[Array, "D"]) -> Float[Array, "... D"]:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(silu(gate x) * up x).

    The backward pass works the product out again from its factors instead of keeping it, unless the whole layer is
    (``remat``): for a few operations per element, a third less is kept.
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
        self.remat = remat
        self.gate = Linear(init, (size,), (hidden,), (embed, mlp), bias=bias)
        self.up = Linear(init, (size,), (hidden,), (embed, mlp), bias=bias)
        self.down = Linear(init, (hidden,), (size,), (mlp, embed), bias=bias, scale=residual_scale)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        flat = x.reshape(-1, x.shape[-1])  # of several leading dimensions a CPU's backward pass takes 1.7 times as long
        gate, up = self.gate(flat), self.up(flat)
        if self.remat:
            y = self.down(_gated(gate, up))
        else:
            y = self.down.biased(_gated_product(gate, up, self.down.kernel[...].astype(x.dtype)))
        return y.reshape(x.shape)


def _gated(gate: Float[Array, "N F"], up: Float[Array, "N F"]) -> Float[Array, "N F"]:
    return jax.nn.silu(gate) * up


@jax.custom_vjp
def _gated_product(gate: Float[Array, "N F"], up: Float[Array, "N F"], kernel: Float[Array, "F D"]):
    return _gated(gate, up) @ kernel


def _gated_product_forward(gate, up, kernel):
    return _gated_product(gate, up, kernel), (gate, up, kernel)


def _gated_product_backward(saved, gradient):
    gate, up, kernel = saved
    upstream = gradient @ kernel.T
    product, backward = jax.vjp(_gated, after(gate, upstream), up)
    return *backward(upstream), product.T @ gradient


_gated_product.defvjp(_gated_product_forward, _gated_product_backward)
