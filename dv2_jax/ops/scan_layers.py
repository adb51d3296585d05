"""Applies stacked layers one after another: a `lax.scan`, unrolled or rematerialized as the backend and the size need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

# Scans of up to this many layers are unrolled. A rolled scan adds a fifth to the backward pass on CPU; an unrolled one
# costs compile time on every backend.
UNROLL_LAYERS = 8


def unrolls(layers: int) -> bool:
    """Tests if a tower of this many layers is unrolled."""
    return layers <= UNROLL_LAYERS


def scan_unroll(layers: int) -> int | bool:
    """Returns the `unroll` argument of `jax.lax.scan` for a tower of this many layers."""
    return True if unrolls(layers) else 1


def scan_layers(
    layer: Callable[[Any, Array, Any], tuple[Array, Any]],
    stacked: Any,
    x: Float[Array, "..."],
    cache: Any = None,
    *,
    tower_layers: int,
    layer_remat: bool,
) -> tuple[Float[Array, "..."], Any]:
    """Computes `x, cache[i] = layer(stacked[i], x, cache[i])` for each layer i; returns x and the new cache.

    Args:
        layer: function of one layer's parameters, its input and its cache.
        stacked: parameters with a leading layer dimension.
        cache: pytree with a leading layer dimension, or a list with one entry per layer, or None.
        tower_layers: number of layers of the tower, of which `stacked` may be a part; small towers are unrolled.
        layer_remat: rematerializes each layer in the backward pass (`jax.checkpoint`).
    """

    def body(x, inputs):
        params, layer_cache = inputs
        return layer(params, x, layer_cache)

    if layer_remat:
        body = jax.checkpoint(body)
    if not isinstance(cache, list):
        return jax.lax.scan(body, x, (stacked, cache), unroll=scan_unroll(tower_layers))
    # One cache per layer instead of a stacked one: a scan would copy every layer's cache in each decode step.
    new_cache = []
    for index, layer_cache in enumerate(cache):
        x, layer_cache = body(x, (jax.tree.map(lambda leaf, i=index: leaf[i], stacked), layer_cache))
        new_cache.append(layer_cache)
    return x, new_cache
