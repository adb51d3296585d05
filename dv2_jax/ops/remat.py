"""Rematerialization that also works on CPU.

Rematerialized values must depend on the incoming gradient. Otherwise XLA schedules the recomputation early or CSEs it
with the forward pass, and memory is not saved. `jax.checkpoint` adds the dependency with an `optimization_barrier`, which
XLA:CPU drops. There `0 * gradient` is added instead: XLA cannot simplify it away because the gradient could be NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dv2_jax.parallel.mesh import traced_platform


def depend_on(x: Float[Array, "..."], gradient: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x with a data dependency on `gradient` (of the same shape, or a scalar).

    On CPU a non-finite gradient makes the result non-finite.
    """
    if traced_platform() != "cpu":
        return jax.lax.optimization_barrier((x, gradient))[0]
    return x + (0 * gradient).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def remat(
    function: Callable[..., Float[Array, "..."]], x: Float[Array, "..."], *others: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Computes `function(x, *others)`, of the shape of x, saving only the arguments for the backward pass."""
    return function(x, *others)


def _forward(function, x, *others):
    return function(x, *others), (x, *others)


def _backward(function, saved, gradient):
    x, *others = saved
    return jax.vjp(function, depend_on(x, gradient), *others)[1](gradient)


remat.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def remat_matmul(
    function: Callable[..., Float[Array, "N F"]],
    inputs: tuple[Float[Array, "N F"] | Float[Array, "F"], ...],
    kernels: tuple[Float[Array, "F ..."], ...],
) -> tuple[Float[Array, "N ..."], ...]:
    """Computes `function(*inputs) @ kernel` for each kernel, saving only `inputs` for the backward pass.

    `function(*inputs)`, of the first input's shape, is recomputed where the kernels' gradients need it.
    """
    left = function(*inputs)
    return tuple(jnp.tensordot(left, kernel, 1) for kernel in kernels)


def _matmul_forward(function, inputs, kernels):
    return remat_matmul(function, inputs, kernels), (inputs, kernels)


def _matmul_backward(function, saved, gradients):
    (x, *others), kernels = saved
    flat = [gradient.reshape(len(gradient), -1) for gradient in gradients]
    left_gradient = sum(
        gradient @ kernel.reshape(len(kernel), -1).T for gradient, kernel in zip(flat, kernels, strict=True)
    )
    left, backward = jax.vjp(function, depend_on(x, left_gradient), *others)
    kernel_gradients = (left.T @ gradient for gradient in flat)
    shaped = (x.reshape(kernel.shape) for x, kernel in zip(kernel_gradients, kernels, strict=True))
    return backward(left_gradient), tuple(shaped)


remat_matmul.defvjp(_matmul_forward, _matmul_backward)
