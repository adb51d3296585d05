"""Every backend of segment attention against a dense softmax in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dv2_jax.ops import attention_splash
from dv2_jax.ops.attention import causal_segment_attention, segment_attention


def packed_segments(rows: int, tokens: int, seed: int) -> np.ndarray:
    """Returns rows of one to five segments of random length, then padding; the last row is all padding."""
    rng = np.random.default_rng(seed)
    segments = np.zeros((rows, tokens), np.int32)
    for row in range(rows - 1):
        cuts = np.sort(rng.choice(tokens - 1, rng.integers(1, 6), replace=False)) + 1
        for number, (start, end) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True), start=1):
            segments[row, start:end] = number
    return segments


def dense(q, k, v, segments, causal):
    """Computes attention with a dense softmax in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    k, v = np.repeat(k, group, 2), np.repeat(v, group, 2)
    scores = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    mask = segments[:, :, None] == segments[:, None, :]
    if causal:
        mask &= np.tril(np.ones(mask.shape[1:], bool))
    scores = np.where(mask[:, None], scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhts,bshd->bthd", p / p.sum(-1, keepdims=True), v)


def random_qkv(rows, tokens, heads, kv_heads, dim, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = [(rows, tokens, n, dim) for n in (heads, kv_heads, kv_heads)]
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("backend", ["tiled", "blocked", "auto"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tokens", [64, 300, 1300])
def test_packed_rows_see_their_own_segments_only(tokens, causal, backend):
    """Catches a tile wrongly skipped, a mask off by one and padding of the last tile that leaks in."""
    q, k, v = random_qkv(3, tokens, 4, 2, 16)
    segments = packed_segments(3, tokens, tokens)
    function = causal_segment_attention if causal else segment_attention
    out = jax.jit(lambda *a: function(*a, backend=backend))(q, k, v, segments)
    np.testing.assert_allclose(out, dense(q, k, v, segments, causal), atol=3e-6)


@pytest.mark.parametrize("backend", ["tiled", "blocked"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tokens", [300, 700])  # 700: two tiles of queries and three of keys
def test_gradients_agree_with_differentiating_a_plain_softmax(tokens, causal, backend):
    """Catches: an error in the hand-written backward passes; JAX differentiates the oracle."""
    q, k, v = random_qkv(2, tokens, 4, 2, 16)
    segments = jnp.asarray(packed_segments(2, tokens, 7))
    weights = jax.random.normal(jax.random.key(9), q.shape)
    function = causal_segment_attention if causal else segment_attention

    def plain(q, k, v):
        k, v = jnp.repeat(k, 2, 2), jnp.repeat(v, 2, 2)
        scores = jnp.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
        mask = segments[:, :, None] == segments[:, None, :]
        if causal:
            mask &= jnp.tril(jnp.ones(mask.shape[1:], bool))
        return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), -1), v)

    ours = jax.jit(jax.grad(lambda *a: (function(*a, segments, backend=backend) * weights).sum(), (0, 1, 2)))(q, k, v)
    theirs = jax.jit(jax.grad(lambda *a: (plain(*a) * weights).sum(), (0, 1, 2)))(q, k, v)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, atol=2e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_the_tpu_kernel_interpreted_gives_the_same(causal):
    """Catches: a wrong mask, scale, head grouping or layout of the TPU path, without a TPU."""
    q, k, v = random_qkv(2, 256, 4, 2, 128)
    segments = packed_segments(2, 256, 3)
    segments[-1] = 1
    out = attention_splash.attention(q, k, v, jnp.asarray(segments), causal=causal, interpret=True)
    real = segments > 0
    np.testing.assert_allclose(np.asarray(out)[real], dense(q, k, v, segments, causal)[real], atol=1e-5)


def test_bfloat16_inputs_are_summed_in_fp32():
    """Catches scores or sums kept in bf16, whose error grows with the row: it stays that of rounding inputs and output."""
    q, k, v = (x.astype(jnp.bfloat16) for x in random_qkv(1, 1024, 2, 1, 32))
    segments = np.ones((1, 1024), np.int32)
    for backend in ("tiled", "blocked"):
        out = causal_segment_attention(q, k, v, jnp.asarray(segments), backend=backend)
        assert out.dtype == jnp.bfloat16
        error = np.abs(np.asarray(out, np.float64) - dense(q, k, v, segments, True))
        assert error.max() < 0.02 and error.mean() < 1e-3


@pytest.mark.parametrize("attend", [causal_segment_attention, segment_attention])
def test_tiles_keep_what_the_backward_pass_needs_and_no_more(attend):
    """Catches: an output saved in a second layout, and gradient buffers allocated at program start (one or two more each).

    A layer needs its input, queries, keys, values, output and one copy."""
    rows, tokens, heads, dim = 4, 512, 2, 64
    segments = jnp.ones((rows, tokens), jnp.int32)

    def loss(x, weights):
        for weight in weights:
            q = x * weight
            x = x + attend(q, 2 * q, 3 * q, segments, backend="tiled")
        return (x * x).sum()

    def temporaries(layers):  # in activations
        x, weights = (
            jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(rows, tokens, heads, dim), (layers, 1, dim)]
        )
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, weights).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (rows * tokens * heads * dim * 4)

    assert (temporaries(6) - temporaries(2)) / 4 <= 6.5
