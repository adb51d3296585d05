"""Tests the sizes of images that tools return, and the images that a code cell starts with."""

import io
from dataclasses import replace

import pytest
from PIL import Image

from dv2_jax.agent.agent_images import fit_returned_image, returned_image_size, sandbox_images
from dv2_jax.config import ImageConfig
from dv2_jax.data.images import preprocess
from tests.agent.tool_results import png


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (640, 480)),
        ((32, 6400), (32, 6400)),  # ratio 200 exactly: kept
        ((10, 10), (32, 32)),
        ((20, 31), (32, 50)),  # 31 * 1.6 = 49.6, rounded up
        ((8000, 32), (4000, 32)),  # ratio 250: half of it
        ((32, 32000), (32, 4800)),  # ratio 1000: at most 150
        ((3, 3000), (32, 4800)),  # shortened to 450, then scaled up by 32 / 3
    ],
)
def test_sizes_follow_the_released_rule(size, expected):
    assert returned_image_size(*size) == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (4000, 3), (31, 6300)])
def test_every_returned_image_can_be_shown_to_the_model(size):
    shown = fit_returned_image(png(*size))
    patches, grid = preprocess(shown, min_pixels=56 * 56, max_pixels=112 * 112)
    assert len(patches) == grid[1] * grid[2] and Image.open(io.BytesIO(shown)).size == returned_image_size(*size)


def test_an_image_of_suitable_size_is_unchanged_and_an_undecodable_one_is_none():
    assert fit_returned_image(png()) == png()
    assert fit_returned_image(png()[:60]) is None and fit_returned_image(b"") is None


def test_sandbox_images_are_the_files_or_the_model_view(agent, question):
    image = ImageConfig(min_pixels=56 * 56, max_pixels=112 * 112)
    assert sandbox_images(question, agent, image) == question.images
    (view,) = sandbox_images(question, replace(agent, code_images="view"), image)
    seen, grid = preprocess(question.images[0], min_pixels=image.min_pixels, max_pixels=image.max_pixels)
    assert Image.open(io.BytesIO(view)).size == (grid[2] * 14, grid[1] * 14)
    patches, _ = preprocess(view, min_pixels=1, max_pixels=10**6)  # at its own size
    assert (patches == seen).all()
