"""M-RoPE positions against transformers' get_rope_index, of complete and of incrementally extended sequences."""

from __future__ import annotations

import types

import numpy as np
import pytest

from dv2_jax.model.image_grid import num_image_tokens
from dv2_jax.model.positions import mrope_positions
from tests.model.samples import tiny_config


def random_layout(rng: np.random.Generator, config):
    """Returns zero to five images of any grid with text of random length, possibly empty, between them."""
    pieces, grids = [], []
    for _ in range(rng.integers(0, 6)):
        grid = (1, 2 * int(rng.integers(1, 12)), 2 * int(rng.integers(1, 12)))
        text = rng.integers(20, 256, rng.integers(0, 30)).tolist()
        image = [config.image_token_id] * num_image_tokens(grid)
        pieces.append([*text, config.vision_start_token_id, *image, config.vision_end_token_id])
        grids.append([grid])
    pieces.append(rng.integers(20, 256, rng.integers(1, 30)).tolist())
    grids.append([])
    return pieces, grids


def expected_positions(ids: list[int], grids: list, config) -> np.ndarray:
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
    # The method uses only the vision configuration and one helper method of the model.
    vision = types.SimpleNamespace(spatial_merge_size=2, tokens_per_second=2)
    model = types.SimpleNamespace(
        config=types.SimpleNamespace(vision_config=vision),
        get_vision_position_ids=modeling.Qwen2_5_VLModel.get_vision_position_ids.__get__(object()),
    )
    tensor = torch.tensor([ids])
    positions, _ = modeling.Qwen2_5_VLModel.get_rope_index(
        model, tensor, (tensor == config.image_token_id).int(), torch.tensor(grids) if grids else None
    )
    return positions[:, 0].numpy()


def test_positions_equal_those_of_transformers_on_a_thousand_layouts():
    config = tiny_config()
    rng = np.random.default_rng(0)
    for _ in range(1000):
        pieces, grids = random_layout(rng, config)
        ids, flat = sum(pieces, []), sum(grids, [])
        positions, following = mrope_positions(ids, flat, config)
        np.testing.assert_array_equal(positions, expected_positions(ids, flat, config))
        longer, _ = mrope_positions([*ids, 30], flat, config)
        assert (longer[:, -1] == following).all()


def test_appended_parts_get_the_positions_of_the_concatenation():
    """Catches a continuation that starts at the number of tokens instead of past the largest position."""
    config = tiny_config()
    rng = np.random.default_rng(1)
    for _ in range(200):
        pieces, grids = random_layout(rng, config)
        complete, end = mrope_positions(sum(pieces, []), sum(grids, []), config)
        start, parts = 0, []
        for piece, grid in zip(pieces, grids, strict=True):
            part, start = mrope_positions(piece, grid, config, start=start)
            parts.append(part)
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), complete)
        assert start == end


@pytest.mark.parametrize(
    ("placeholders", "grids", "message"),
    [
        (4, [(1, 4, 6)], "needs 6 placeholders"),
        (6, [(1, 4, 6), (1, 4, 4)], "2 images but placeholders for 1"),
        (7, [(1, 4, 6)], "1 image placeholders beyond"),
        (3, [(1, 3, 4)], "multiples of 2"),
        (8, [(2, 4, 4)], "only still images"),
    ],
)
def test_placeholders_that_do_not_match_the_images_are_refused(placeholders, grids, message):
    config = tiny_config()
    ids = [20, 12, *[config.image_token_id] * placeholders, 13, 21]
    with pytest.raises(ValueError, match=message):
        mrope_positions(ids, grids, config)


def test_placeholders_of_a_video_are_refused():
    """Catches: video placeholders treated as text."""
    config = tiny_config()
    with pytest.raises(ValueError, match="stands for a video; only still images"):
        mrope_positions([20, 12, config.video_token_id, 13, 21], [], config)
