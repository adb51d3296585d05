"""Sizes of pictures that tools return, and the pictures that code starts with."""

import io
from dataclasses import replace

import pytest
from PIL import Image

from dv2_jax.agent.agent_images import returned_picture, returned_size, sandbox_pictures
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
    assert returned_size(*size) == expected


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (4000, 3), (31, 6300)])
def test_every_returned_picture_can_be_shown_to_the_model(size):
    shown = returned_picture(png(*size))
    patches, grid = preprocess(shown, min_pixels=56 * 56, max_pixels=112 * 112)
    assert len(patches) == grid[1] * grid[2] and Image.open(io.BytesIO(shown)).size == returned_size(*size)


def test_a_picture_of_fine_size_is_passed_on_unchanged_and_rubbish_is_not():
    assert returned_picture(png()) == png()
    assert returned_picture(png()[:60]) is None and returned_picture(b"") is None


def test_code_starts_with_the_files_themselves_or_with_what_the_model_sees(agent, question):
    image = ImageConfig(min_pixels=56 * 56, max_pixels=112 * 112)
    assert sandbox_pictures(question, agent, image) == question.images
    (view,) = sandbox_pictures(question, replace(agent, code_images="view"), image)
    seen, grid = preprocess(question.images[0], min_pixels=image.min_pixels, max_pixels=image.max_pixels)
    assert Image.open(io.BytesIO(view)).size == (grid[2] * 14, grid[1] * 14)
    patches, _ = preprocess(view, min_pixels=1, max_pixels=10**6)  # at its own size
    assert (patches == seen).all()
