"""Moving rows between two layouts, in which each real row stands exactly once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def move_rows(x: Float[Array, "N C"], index: Int[Array, "O"], inverse: Int[Array, "N"]) -> Float[Array, "O C"]:
    """``out[o] = x[index[o]]``, zero where the index is N (padding).

    ``inverse`` says where each input row went (O: nowhere). With it the backward pass is a gather too; the
    scatter that differentiation of a plain gather gives is serial on a CPU and slow on a TPU.
    """
    return _take(x, index)


def _take(x, index):
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _forward(x, index, inverse):
    return _take(x, index), (index, inverse)


def _backward(saved, gradient):
    index, inverse = saved
    none = lambda a: np.zeros(a.shape, jax.dtypes.float0)  # noqa: E731
    return _take(gradient, inverse), none(index), none(inverse)


move_rows.defvjp(_forward, _backward)
