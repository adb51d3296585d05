"""Tests of the forward pass in its three uses: packed training rows, prefill, decode."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dv2_jax.model.image_grid import num_image_tokens
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import abstract_params, build, init_params, logical_axes, merge, split
from dv2_jax.model.positions import mrope_positions
from dv2_jax.model.rope import mrope_cos_sin, vision_cos_sin
from dv2_jax.model.vision_inputs import VisionBucket, vision_batch
from dv2_jax.ops.attention import causal_segment_attention
from dv2_jax.ops.rotary import apply_rope
from dv2_jax.parallel.mesh import AXIS_RULES
from tests.model.samples import images_of, tiny_config

CONFIG = tiny_config()
IMAGES = images_of([(84, 140), (140, 84)], 112 * 112)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0))


def talk(rng, image: int | None, before: int, after: int):
    """Returns (ids, image_index, positions) of one example."""
    ids = rng.integers(20, 256, before).tolist()
    index = [-1] * before
    if image is not None:
        first = sum(num_image_tokens(grid) for _, grid in IMAGES[:image])
        count = num_image_tokens(IMAGES[image][1])
        ids += [12, *[10] * count, 13]
        index += [-1, *range(first, first + count), -1]
    ids += rng.integers(20, 256, after).tolist()
    index += [-1] * after
    grids = [] if image is None else [IMAGES[image][1]]
    return np.array(ids), np.array(index), mrope_positions(ids, grids, CONFIG)[0]


def packed_hidden(graphdef, params, vision, ids, index, positions, segments):
    model = merge(graphdef, params)
    embeds = model.embed(ids, model.encode_images(vision), index)
    return model.hidden(embeds, positions, lambda q, k, v, c: (causal_segment_attention(q, k, v, segments), c))[0]


def test_packed_rows_equal_rows_of_their_own(params):
    """Catches attention across examples, positions that run on, and image rows of the neighbor."""
    rng = np.random.default_rng(0)
    examples = [talk(rng, 1, 5, 30), talk(rng, None, 40, 1), talk(rng, 0, 9, 20)]
    graphdef, _ = build(CONFIG)
    vision = vision_batch(IMAGES, [VisionBucket.for_patches(2, 64)], CONFIG.vision)
    program = jax.jit(lambda *arrays: packed_hidden(graphdef, params, vision, *arrays))

    def row(examples, length=192):
        ids, index, positions, segments = (
            np.zeros(length, int), np.full(length, -1), np.zeros((3, length), int), np.zeros(length, int)
        )  # fmt: skip
        at = 0
        for number, (i, m, p) in enumerate(examples, start=1):
            here = slice(at, at + len(i))
            ids[here], index[here], positions[:, here], segments[here] = i, m, p, number
            at += len(i)
        return ids[None], index[None], positions[:, None], segments[None]

    together = np.asarray(program(*row(examples)))[0]
    at = 0
    for example in examples:
        alone = np.asarray(program(*row([example])))[0, : len(example[0])]
        np.testing.assert_allclose(together[at : at + len(alone)], alone, atol=2e-5)
        at += len(alone)


def test_prefill_and_decoding_with_a_cache_equal_the_full_forward(params):
    """Catches: a cache slice given to the wrong layer. The cache is dense, in `attend`; the model does not depend on it."""
    rng = np.random.default_rng(1)
    ids, index, positions = talk(rng, 0, 6, 20)
    length, prompt = len(ids), len(ids) - 8
    graphdef, _ = build(CONFIG)
    vision = vision_batch(IMAGES, [VisionBucket.for_patches(2, 64)], CONFIG.vision)
    arrays = (ids[None], index[None], positions[:, None], np.ones((1, length), np.int32))
    full = jax.jit(lambda params: packed_hidden(graphdef, params, vision, *arrays))(params)[0]
    text = CONFIG.text
    shape = (text.num_layers, 1, length, text.num_kv_heads, text.head_dim)

    def step(cache, ids, index, positions, start):
        model = merge(graphdef, params)
        embeds = model.embed(ids[None], model.encode_images(vision), index[None])

        def attend(q, k, v, layer):
            keys = jax.lax.dynamic_update_slice(layer[0], k, (0, start, 0, 0))
            values = jax.lax.dynamic_update_slice(layer[1], v, (0, start, 0, 0))
            repeat = text.num_heads // text.num_kv_heads
            scores = jnp.einsum("bthd,bshd->bhts", q, jnp.repeat(keys, repeat, 2)) * text.head_dim**-0.5
            mask = start + jnp.arange(q.shape[1])[:, None] >= jnp.arange(length)
            p = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), -1)
            return jnp.einsum("bhts,bshd->bthd", p, jnp.repeat(values, repeat, 2)), (keys, values)

        return model.hidden(embeds, positions[:, None], attend, cache)

    step = jax.jit(step)
    cache = (jnp.zeros(shape), jnp.zeros(shape))
    hidden, cache = step(cache, ids[:prompt], index[:prompt], positions[:, :prompt], 0)
    found = [hidden[0]]
    for t in range(prompt, length):
        hidden, cache = step(cache, ids[t : t + 1], index[t : t + 1], positions[:, t : t + 1], t)
        found.append(hidden[0])
    np.testing.assert_allclose(np.concatenate(found), full, atol=2e-5)


def test_rematerialized_and_plain_layers_give_the_same_gradient(params):
    rng = np.random.default_rng(2)
    ids, index, positions = talk(rng, 1, 6, 20)
    vision = vision_batch(IMAGES, [VisionBucket.for_patches(2, 64)], CONFIG.vision)
    arrays = (ids[None], index[None], positions[:, None], np.ones((1, len(ids)), np.int32))

    def gradient(remat):
        graphdef, _ = build(CONFIG, remat=remat)
        loss = lambda params: (packed_hidden(graphdef, params, vision, *arrays) ** 3).sum()  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    plain, again = gradient(False), gradient(True)
    for name in plain:
        scale = float(jnp.abs(plain[name]).max())
        np.testing.assert_allclose(again[name], plain[name], atol=1e-5 * scale, err_msg=name)


def test_rotary_angles_of_patches_stay_fp32_in_bf16_compute():
    """Catches: bf16 angles, which are off by up to half a radian at column 131."""
    x = jax.random.normal(jax.random.key(0), (1, 2, 1, 16)).astype(jnp.bfloat16)
    coordinates = np.array([[131, 77], [3, 129]])
    found = np.asarray(apply_rope(x, vision_cos_sin(jnp.asarray(coordinates)[None], head_dim=16)), np.float64)
    angles = (coordinates[:, :, None] * 1e4 ** (-np.arange(4) / 4)).reshape(2, 8)
    a, b = np.split(np.asarray(x, np.float64), 2, axis=-1)
    cos, sin = np.cos(angles)[None, :, None], np.sin(angles)[None, :, None]
    np.testing.assert_allclose(found, np.concatenate([a * cos - b * sin, b * cos + a * sin], -1), atol=0.02)


def test_rotary_angles_stay_fp32_in_bf16_compute():
    """Catches: bf16 angles, which are off by up to 64 radians at position 20,000."""
    x = jax.random.normal(jax.random.key(0), (1, 3, 1, 32)).astype(jnp.bfloat16)
    positions = np.broadcast_to(np.array([[20_001, 255, 131]]), (3, 1, 3))
    rope = mrope_cos_sin(jnp.asarray(positions), head_dim=32, theta=1e4, sections=(4, 6, 6))
    found = np.asarray(apply_rope(x, rope), np.float64)
    angles = positions[0][..., None] * 1e4 ** (-np.arange(16) / 16)
    a, b = np.split(np.asarray(x, np.float64), 2, axis=-1)
    cos, sin = np.cos(angles)[:, :, None], np.sin(angles)[:, :, None]
    expected = np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_rope_sines_are_computed_once_on_cpu(params):
    """Catches: sines fused into and recomputed in every use (each layer, queries, keys, backward pass)."""
    ids = np.arange(20, 84)[None]
    positions = np.broadcast_to(np.arange(64), (3, 1, 64))
    graphdef, _ = build(CONFIG)

    def loss(params, positions):
        model = merge(graphdef, params)
        attend = lambda q, k, v, c: (causal_segment_attention(q, k, v, jnp.ones_like(ids)), c)  # noqa: E731
        return (model.hidden(model.embed(ids), positions, attend)[0] ** 3).sum()

    text = jax.jit(jax.grad(loss)).lower(params, positions).compile().as_text()
    assert text.count(" cosine(") == text.count(" sine(") == 1


def test_bf16_compute_stays_close_to_fp32(params):
    """Catches: a norm, softmax or residual sum computed in bf16. Compares token distributions by KL divergence."""
    ids, index, positions = talk(np.random.default_rng(3), 0, 60, 120)
    arrays = (ids[None], index[None], positions[:, None], np.ones((1, len(ids)), np.int32))
    vision = vision_batch(IMAGES, [VisionBucket.for_patches(2, 64)], CONFIG.vision)

    def logits(dtype):
        graphdef, _ = build(CONFIG, compute_dtype=dtype)

        @jax.jit
        def forward(params):
            hidden = packed_hidden(graphdef, params, vision, *arrays)
            assert hidden.dtype == dtype
            return merge(graphdef, params).logits(hidden)[0]

        return np.asarray(forward(params), np.float64)

    exact, rounded = logits(jnp.float32), logits(jnp.bfloat16)
    scale = 3 / exact.std()  # as sharp as a trained model's distribution; fresh weights give a nearly uniform one
    exact, rounded = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (scale * exact, scale * rounded))
    divergence = (np.exp(exact) * (exact - rounded)).sum(-1)
    assert (np.exp(exact) * exact).sum(-1).mean() > -np.log(256) + 1, "distributions too flat to differ"
    assert divergence.mean() <= 1e-3 and divergence.max() <= 1e-2


def test_parameters_split_and_merge_without_change(params):
    graphdef, _ = build(CONFIG)
    again, same = split(merge(graphdef, params))
    assert again == graphdef and hash(again) == hash(graphdef), "equal definitions share one compiled program"
    assert same.keys() == params.keys() and all(same[n] is params[n] for n in params)


@pytest.mark.parametrize(
    "config", [CONFIG, *map(ModelConfig.preset, ("3b", "7b", "72b"))], ids=lambda c: c.text.hidden_size
)
def test_every_dimension_of_every_parameter_has_a_name_in_the_mesh_table(config):
    shapes, axes = abstract_params(config), logical_axes(config)
    assert shapes.keys() == axes.keys()
    for name, dimensions in axes.items():
        assert len(dimensions) == len(shapes[name].shape)
        assert set(dimensions) <= set(AXIS_RULES), name
        used = [AXIS_RULES[d] for d in dimensions if AXIS_RULES[d]]
        assert len(used) == len(set(used)), f"{name} would be sharded twice by one mesh axis"


def test_fresh_weights_predict_nothing(params):
    """Catches: a wrong scale of the initialization. The loss of an untrained model is log V."""
    ids = jax.random.randint(jax.random.key(1), (2, 64), 20, 256)
    positions = jnp.broadcast_to(jnp.arange(64), (3, 2, 64))
    segments = jnp.ones((2, 64), jnp.int32)

    @jax.jit
    def loss(params):
        model = merge(build(CONFIG)[0], params)
        attend = lambda q, k, v, c: (causal_segment_attention(q, k, v, segments), c)  # noqa: E731
        hidden, _ = model.hidden(model.embed(ids), positions, attend)
        logprobs = jax.nn.log_softmax(model.logits(hidden)[:, :-1])
        return -jnp.take_along_axis(logprobs, ids[:, 1:, None], -1).mean()

    assert abs(float(loss(params)) - np.log(256)) < 0.2
