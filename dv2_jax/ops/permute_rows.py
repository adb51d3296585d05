"""Permutes rows between two padded layouts that hold each real row exactly once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def permute_rows(x: Float[Array, "N C"], index: Int[Array, "O"], inverse: Int[Array, "N"]) -> Float[Array, "O C"]:
    """Returns `out[o] = x[index[o]]`, zero where the index is N (padding).

    `inverse` is the output row of each input row (O if there is none). With it the backward pass is a gather too;
    differentiating a plain gather gives a scatter, which is serial on CPU and slow on TPU.
    """
    return _take(x, index)


def _take(x, index):
    return jnp.take(x, index, axis=0, mode="fill", fill_value=0)


def _forward(x, index, inverse):
    return _take(x, index), (index, inverse)


def _backward(saved, gradient):
    index, inverse = saved
    no_gradient = [np.zeros(x.shape, jax.dtypes.float0) for x in (index, inverse)]
    return _take(gradient, inverse), *no_gradient


permute_rows.defvjp(_forward, _backward)
