"""Working something out again in the backward pass, not before: also on a CPU.

What is worked out again must wait for the gradient that needs it; otherwise the compiler does it at once, or finds that
the forward pass did it already, and keeps it. ``jax.checkpoint`` says so with an ``optimization_barrier``, which XLA's CPU
compiler drops. There the gradient times zero is added: the compiler may not leave that out, for it could be a NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dv2_jax.parallel.mesh import traced_platform


def after(x: Float[Array, "..."], gradient: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x``, once the gradient (of the same shape, or one number of it) is there. Where that is not finite, nor is what
    comes of it."""
    if traced_platform() != "cpu":
        return jax.lax.optimization_barrier((x, gradient))[0]
    return x + (0 * gradient).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recomputed(
    function: Callable[..., Float[Array, "..."]], x: Float[Array, "..."], *others: Float[Array, "..."]
) -> Float[Array, "..."]:
    """``function(x, *others)``, of x's shape, of which nothing but the arguments is kept for the backward pass."""
    return function(x, *others)


def _forward(function, x, *others):
    return function(x, *others), (x, *others)


def _backward(function, saved, gradient):
    x, *others = saved
    return jax.vjp(function, after(x, gradient), *others)[1](gradient)


recomputed.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recomputed_products(
    function: Callable[..., Float[Array, "N F"]],
    inputs: tuple[Float[Array, "N F"] | Float[Array, "F"], ...],
    kernels: tuple[Float[Array, "F ..."], ...],
) -> tuple[Float[Array, "N ..."], ...]:
    """``function(*inputs)``, of the first input's shape, times each kernel. Of the left side of the products, which their
    gradients need, nothing but the inputs is kept."""
    left = function(*inputs)
    return tuple(jnp.tensordot(left, kernel, 1) for kernel in kernels)


def _products_forward(function, inputs, kernels):
    return recomputed_products(function, inputs, kernels), (inputs, kernels)


def _products_backward(function, saved, gradients):
    (x, *others), kernels = saved
    flat = [gradient.reshape(len(gradient), -1) for gradient in gradients]
    upstream = sum(gradient @ kernel.reshape(len(kernel), -1).T for gradient, kernel in zip(flat, kernels, strict=True))
    left, backward = jax.vjp(function, after(x, upstream), *others)
    changes = (left.T @ gradient for gradient in flat)
    return backward(upstream), tuple(x.reshape(kernel.shape) for x, kernel in zip(changes, kernels, strict=True))


recomputed_products.defvjp(_products_forward, _products_backward)
