"""The few layers both towers are made of. Every parameter carries its logical axes as metadata.

``stack`` prepends a layer dimension: a stacked module holds all layers of a tower and is scanned, one
slice at a time. Weights are kept in ``param_dtype`` and cast to the dtype of the input where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dv2_jax.ops.remat import recomputed, recomputed_products

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

    The backward pass works it out again instead of keeping it, unless the whole layer is (``remat``).
    """

    def __init__(self, init: Init, size: int, eps: float, *, remat: bool = False):
        self.eps, self.remat = eps, remat
        self.scale = init.param((size,), ("norm",), std=None, fill=1.0)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        normed = partial(_normed, self.eps)
        return normed(x, self.scale[...]) if self.remat else recomputed(normed, x, self.scale[...])

    def into(self, x: Float[Array, "... D"], *layers: Linear) -> tuple[Float[Array, "..."], ...]:
        """What each layer makes of the normed x."""
        if self.remat:
            y = self(x)
            return tuple(layer(y) for layer in layers)
        return products_of(partial(_normed, self.eps), (x, self.scale[...]), layers)


def products_of(
    function: Callable[..., Array], inputs: tuple[Float[Array, "... F"], ...], layers: Sequence[Linear]
) -> tuple[Float[Array, "..."], ...]:
    """What layers make of ``function(*inputs)``, which the backward pass works out again."""
    leading = inputs[0].shape[:-1]
    # Of several leading dimensions a CPU's backward pass takes 1.7 times as long.
    flat = tuple(x.reshape(-1, x.shape[-1]) if x.ndim > 1 else x for x in inputs)
    kernels = tuple(layer.kernel[...].astype(inputs[0].dtype) for layer in layers)
    found = recomputed_products(function, flat, kernels)
    return tuple(layer.biased(y.reshape(*leading, *layer.outputs)) for layer, y in zip(layers, found, strict=True))


def _normed(eps: float, x: Float[Array, "... D"], scale: Float[Array, "D"]) -> Float[Array, "... D"]:
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


class GatedMLP(nnx.Module):
    """down(silu(gate y) * up y) of the normed y.

    The backward pass works y and the product out again instead of keeping them, unless the whole layer is (``remat``):
    for a few operations per element, about half is kept.
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

    def __call__(self, x: Float[Array, "... D"], norm: RMSNorm) -> Float[Array, "... D"]:
        if self.remat:
            flat = norm(x).reshape(-1, x.shape[-1])
            return self.down(_gated(self.gate(flat), self.up(flat))).reshape(x.shape)
        [y] = products_of(_gated, norm.into(x, self.gate, self.up), [self.down])
        return y


def _gated(gate: Float[Array, "N F"], up: Float[Array, "N F"]) -> Float[Array, "N F"]:
    return jax.nn.silu(gate) * up
