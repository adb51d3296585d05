"""Rematerialized values are recomputed in the backward pass and not saved, also by XLA:CPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dv2_jax.model.layers import GatedMLP, Init, RMSNorm
from dv2_jax.ops.remat import remat, remat_matmul

LAYERS = 4


def wave(x, scale):
    return jnp.sin(jnp.exp(jnp.cos(x) * scale)) * scale


def test_the_gradient_is_that_of_the_function():
    x, scale = jnp.linspace(-1, 1, 12).reshape(3, 4), jnp.arange(4.0)
    ours = jax.jit(jax.value_and_grad(lambda *a: remat(wave, *a).sum(), (0, 1)))(x, scale)
    plain = jax.jit(jax.value_and_grad(lambda *a: wave(*a).sum(), (0, 1)))(x, scale)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6)


def test_remat_matmul_has_the_gradient_of_the_plain_matmuls():
    x, scale = jnp.linspace(-1, 1, 12).reshape(3, 4), jnp.arange(4.0)
    kernels = jnp.linspace(0, 1, 8).reshape(4, 2), jnp.linspace(-1, 0, 24).reshape(4, 3, 2)

    def loss(products, x, scale, kernels):
        flat, split = products(wave, (x, scale), kernels)
        assert flat.shape == (3, 2) and split.shape == (3, 3, 2)
        return (flat**2).sum() + (split**3).sum()

    def plain(function, inputs, kernels):
        left = function(*inputs)
        return left @ kernels[0], jnp.einsum("nf,fab->nab", left, kernels[1])

    ours, theirs = (
        jax.jit(jax.value_and_grad(lambda *a, products=products: loss(products, *a), (0, 1, 2)))(x, scale, kernels)
        for products in (remat_matmul, plain)
    )
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-6, atol=1e-6)


class NormedMLP(nnx.Module):
    def __init__(self, init):
        self.norm = RMSNorm(init, 64, 1e-6)
        self.mlp = GatedMLP(init, 64, 128, ("a", "b"), bias=True, residual_scale=1)

    def __call__(self, x):
        return self.mlp(x, self.norm)


def stack(make, *, layer_remat):
    """Returns the gradient of a stack of LAYERS modules, and the temporary bytes of its program on CPU."""
    layers = [make(Init(nnx.Rngs(number), jnp.float32, layer_remat)) for number in range(LAYERS)]
    graphs, params = zip(*(nnx.split(layer) for layer in layers), strict=True)
    x = jax.random.normal(jax.random.key(0), (2048, 64))

    def loss(params, x):
        for graph, values in zip(graphs, params, strict=True):
            x = x + nnx.merge(graph, values)(x)
        return (x * x).sum()

    compiled = jax.jit(jax.grad(loss)).lower(params, x).compile()
    return compiled(params, x), compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    ("make", "share"),
    [
        # Saved per layer, in multiples of 64: input (1), gate and up (2 each); without remat also the normalized input (1),
        # the gated product (2) and its sigmoid (2).
        (NormedMLP, 0.6),
        # Saved per layer: the input; without remat also the normalized input.
        (lambda init: RMSNorm(init, 64, 1e-6), 0.75),
    ],
    ids=["normed mlp", "norm"],
)
def test_a_layer_keeps_less_for_its_backward_pass_and_has_the_same_gradient(make, share):
    """Catches: recomputation that XLA schedules early, or CSEs with the forward pass. With `layer_remat=True` the layer itself
    saves everything, because the caller rematerializes the entire layer."""
    ours, small = stack(make, layer_remat=False)
    plain, large = stack(make, layer_remat=True)
    assert small <= share * large
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(mine, other, rtol=2e-5, atol=2e-5 * np.abs(other).max())
