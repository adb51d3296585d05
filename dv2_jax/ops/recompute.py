"""Working something out again in the backward pass, not before: also on a CPU.

What is worked out again must wait for the gradient that needs it; otherwise the compiler does it at once, or finds that
the forward pass did it already, and keeps it. ``jax.checkpoint`` says so with an ``optimization_barrier``, which XLA's CPU
compiler drops. There the gradient times zero is added: the compiler may not leave that out, for it could be a NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array, Float

from dv2_jax.parallel.mesh import traced_platform


def after(x: Float[Array, "..."], gradient: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x``, once the gradient (of the same shape, or one number of it) is there. Where that is not finite, nor is what comes of it."""
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
