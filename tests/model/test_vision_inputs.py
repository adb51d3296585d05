"""The layout of images (bucket, order, windows) does not change their embeddings."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dv2_jax.model.image_grid import num_image_tokens
from dv2_jax.model.params import build, init_params, merge
from dv2_jax.model.vision_inputs import VisionBucket, fits, vision_batch
from tests.model.samples import images_of, tiny_config

CONFIG = tiny_config()
SIZES = [(56, 56), (84, 140), (112, 112), (56, 224), (140, 84), (196, 252)]


@pytest.fixture(scope="module")
def encode():
    graphdef, _ = build(CONFIG)
    params = init_params(CONFIG, jax.random.key(0))
    program = jax.jit(lambda vision: merge(graphdef, params).encode_images(vision))

    def encode(images, bucket):
        """Returns one array of embeddings per image."""
        found = np.asarray(program(vision_batch(images, [bucket], CONFIG.vision)))
        counts = [num_image_tokens(grid) for _, grid in images]
        assert not found[sum(counts) :].any(), "rows beyond the last image are zero"
        return np.split(found[: sum(counts)], np.cumsum(counts)[:-1])

    return encode


def test_an_image_does_not_depend_on_neighbors_order_or_bucket(encode):
    """Catches attention across images or windows, a wrong inverse permutation, and padding that is attended to."""
    images = images_of(SIZES, 400 * 400)
    alone = [encode([image], VisionBucket.for_patches(1, 256))[0] for image in images]
    order = np.random.default_rng(0).permutation(len(images))
    for bucket in (VisionBucket.for_patches(4, 256), VisionBucket.for_patches(1, 640)):
        together = encode([images[i] for i in order], bucket)
        for i, found in zip(order, together, strict=True):
            np.testing.assert_allclose(found, alone[i], atol=2e-5)


def test_small_images_in_rows_of_one_window_are_the_same_as_in_long_rows(encode):
    """Catches: an error of the window permutation. Rows of 64 patches keep windows in the images' rows; longer rows permute."""
    images = images_of(SIZES[:5], 112 * 112)
    for mine, other in zip(
        encode(images, VisionBucket.for_patches(5, 64)), encode(images, VisionBucket.for_patches(1, 320)), strict=True
    ):
        np.testing.assert_allclose(mine, other, atol=2e-5)


def test_every_pixel_of_an_image_reaches_its_embedding(encode):
    (patches, grid), *_ = images_of([(196, 252)], 400 * 400)
    before = encode([(patches, grid)], VisionBucket.for_patches(1, 256))[0]
    for patch in range(0, len(patches), 37):
        changed = patches.copy()
        changed[patch] += 0.5
        after = encode([(changed, grid)], VisionBucket.for_patches(1, 256))[0]
        assert np.abs(after - before).max() > 1e-4


def test_the_smallest_bucket_that_holds_the_images_is_taken():
    buckets = [VisionBucket.for_patches(rows, 64) for rows in (8, 2, 32)]
    small = images_of([(56, 56)] * 8, 112 * 112)  # eight of 16 patches: four share a row
    assert vision_batch(small, buckets, CONFIG.vision).patches.shape[:2] == (2, 64)
    assert vision_batch([*small, small[0]], buckets, CONFIG.vision).patches.shape[:2] == (8, 64)
    assert vision_batch([], buckets, CONFIG.vision).patches.shape[:2] == (2, 64)


def test_images_that_fit_no_bucket_are_refused_with_sizes():
    images = images_of([(196, 252)], 400 * 400)
    buckets = [VisionBucket.for_patches(64, 64)]
    assert not fits([grid for _, grid in images], buckets, CONFIG.vision)
    with pytest.raises(ValueError, match="largest 252.*add a larger bucket"):
        vision_batch(images, buckets, CONFIG.vision)


def test_patches_of_another_image_or_of_a_video_are_refused():
    (patches, grid), (others, _) = images_of([(56, 56), (84, 84)], 112 * 112)
    bucket = [VisionBucket.for_patches(1, 64)]
    with pytest.raises(ValueError, match="do not match grid"):
        vision_batch([(others, grid)], bucket, CONFIG.vision)
    moving = patches.reshape(-1, 3, 2, 196).copy()
    moving[:, :, 1] += 1
    with pytest.raises(ValueError, match="two different frames"):
        vision_batch([(moving.reshape(patches.shape), grid)], bucket, CONFIG.vision)


def test_full_attention_never_costs_the_square_of_all_patches():
    """Catches: attention over all patches, whose cost grows with the square of the number of images."""
    graphdef, _ = build(CONFIG)
    params = jax.eval_shape(lambda: init_params(CONFIG, jax.random.key(0)))

    def flops(rows):
        images = images_of([(112, 112)], 112 * 112) * rows
        batch = vision_batch(images, [VisionBucket.for_patches(rows, 64)], CONFIG.vision)
        lowered = jax.jit(lambda params, vision: merge(graphdef, params).encode_images(vision)).lower(params, batch)
        return lowered.cost_analysis()["flops"]

    assert flops(200) < 10.5 * flops(20)
