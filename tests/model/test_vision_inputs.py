"""How pictures are laid out changes speed, never what comes out."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dv2_jax.model import VisionBucket, build, init_params, merge, merged_tokens, vision_batch
from dv2_jax.model.vision_inputs import fits
from tests.model.samples import pictures_of, tiny_config

CONFIG = tiny_config()
SIZES = [(56, 56), (84, 140), (112, 112), (56, 224), (140, 84), (196, 252)]


@pytest.fixture(scope="module")
def encode():
    graphdef, _ = build(CONFIG)
    params = init_params(CONFIG, jax.random.key(0))
    program = jax.jit(lambda vision: merge(graphdef, params).encode_images(vision))

    def encode(pictures, bucket):
        """One array per picture."""
        found = np.asarray(program(vision_batch(pictures, [bucket], CONFIG.vision)))
        counts = [merged_tokens(grid) for _, grid in pictures]
        assert not found[sum(counts) :].any(), "rows beyond the last picture are zero"
        return np.split(found[: sum(counts)], np.cumsum(counts)[:-1])

    return encode


def test_a_picture_does_not_depend_on_neighbors_order_or_bucket(encode):
    """Catches attention across pictures or windows, a wrong inverse permutation, and padding that takes part."""
    pictures = pictures_of(SIZES, 400 * 400)
    alone = [encode([picture], VisionBucket.of(1, 256))[0] for picture in pictures]
    order = np.random.default_rng(0).permutation(len(pictures))
    for bucket in (VisionBucket.of(4, 256), VisionBucket.of(1, 640)):
        together = encode([pictures[i] for i in order], bucket)
        for i, found in zip(order, together, strict=True):
            np.testing.assert_allclose(found, alone[i], atol=2e-5)


def test_small_pictures_in_rows_of_one_window_are_the_same_as_in_long_rows(encode):
    """Rows of 64 patches keep windows where the pictures are; longer rows move them: two layouts, one result."""
    pictures = pictures_of(SIZES[:5], 112 * 112)
    for mine, other in zip(
        encode(pictures, VisionBucket.of(5, 64)), encode(pictures, VisionBucket.of(1, 320)), strict=True
    ):
        np.testing.assert_allclose(mine, other, atol=2e-5)


def test_every_pixel_of_a_picture_reaches_its_embedding(encode):
    (patches, grid), *_ = pictures_of([(196, 252)], 400 * 400)
    before = encode([(patches, grid)], VisionBucket.of(1, 256))[0]
    for patch in range(0, len(patches), 37):
        changed = patches.copy()
        changed[patch] += 0.5
        after = encode([(changed, grid)], VisionBucket.of(1, 256))[0]
        assert np.abs(after - before).max() > 1e-4


def test_the_smallest_bucket_that_holds_the_pictures_is_taken():
    buckets = [VisionBucket.of(rows, 64) for rows in (8, 2, 32)]
    small = pictures_of([(56, 56)] * 8, 112 * 112)  # eight of 16 patches: four share a row
    assert vision_batch(small, buckets, CONFIG.vision).patches.shape[:2] == (2, 64)
    assert vision_batch([*small, small[0]], buckets, CONFIG.vision).patches.shape[:2] == (8, 64)
    assert vision_batch([], buckets, CONFIG.vision).patches.shape[:2] == (2, 64)


def test_pictures_that_fit_no_bucket_are_refused_with_sizes():
    pictures = pictures_of([(196, 252)], 400 * 400)
    buckets = [VisionBucket.of(64, 64)]
    assert not fits([grid for _, grid in pictures], buckets, CONFIG.vision)
    with pytest.raises(ValueError, match="largest 252.*add a larger bucket"):
        vision_batch(pictures, buckets, CONFIG.vision)


def test_patches_of_another_picture_or_of_a_video_are_refused():
    (patches, grid), (others, _) = pictures_of([(56, 56), (84, 84)], 112 * 112)
    bucket = [VisionBucket.of(1, 64)]
    with pytest.raises(ValueError, match="do not match grid"):
        vision_batch([(others, grid)], bucket, CONFIG.vision)
    moving = patches.reshape(-1, 3, 2, 196).copy()
    moving[:, :, 1] += 1
    with pytest.raises(ValueError, match="two different frames"):
        vision_batch([(moving.reshape(patches.shape), grid)], bucket, CONFIG.vision)


def test_full_attention_never_costs_the_square_of_all_patches():
    """Two hundred small pictures: scores grow with their number, not with its square."""
    graphdef, _ = build(CONFIG)
    params = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))

    def flops(rows):
        pictures = pictures_of([(112, 112)], 112 * 112) * rows
        batch = vision_batch(pictures, [VisionBucket.of(rows, 64)], CONFIG.vision)
        lowered = jax.jit(lambda params, vision: merge(graphdef, params).encode_images(vision)).lower(params, batch)
        return lowered.cost_analysis()["flops"]

    assert flops(200) < 10.5 * flops(20)
