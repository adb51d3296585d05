"""Parity with transformers for any layout: image grids, long prompts, padded and packed rows.

One compiled program takes every layout: a row of tokens with padding, and one image bucket.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from dv2_jax.model.image_grid import num_image_tokens  # noqa: E402
from dv2_jax.model.params import build, merge  # noqa: E402
from dv2_jax.model.vision_inputs import VisionBucket, vision_batch  # noqa: E402
from dv2_jax.ops.attention import causal_segment_attention  # noqa: E402
from tests.model.reference import Conversation, random_torch_model, relative, to_ours  # noqa: E402
from tests.model.samples import images_of, tiny_config  # noqa: E402

CONFIG = tiny_config(text={"tie_word_embeddings": False})
LENGTH = 512
BUCKET = VisionBucket.for_patches(1, 1280)
SIZES = {  # height and width of each image in pixels
    "one window": [(112, 112)],
    "less than one window": [(84, 56)],
    "odd grids": [(140, 196), (308, 84)],
    "a tall and a wide ribbon": [(56, 560), (616, 56)],
    "six images": [(84, 140), (112, 112), (56, 56), (196, 84), (140, 140), (56, 224)],
}


@pytest.fixture(scope="module")
def theirs():
    return random_torch_model(CONFIG)


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    params = to_ours(theirs.state_dict(), CONFIG, tmp_path_factory.mktemp("weights") / "x")
    graphdef, _ = build(CONFIG)

    @jax.jit
    def logits(vision, ids, image_index, positions, segments):
        model = merge(graphdef, params)
        embeds = model.embed(ids, model.encode_images(vision), image_index)
        attend = lambda q, k, v, c: (causal_segment_attention(q, k, v, segments), c)  # noqa: E731
        return model.logits(model.hidden(embeds, positions, attend)[0])[0]

    return logits


def in_a_row(ours, talks: list[Conversation], starts: list[int], length: int = LENGTH) -> list[np.ndarray]:
    """Returns the logits of conversations packed into one row at `starts`."""
    ids, index, segments = np.zeros(length, np.int32), np.full(length, -1, np.int32), np.zeros(length, np.int32)
    positions, images = np.zeros((3, length), np.int32), []
    for number, (talk, start) in enumerate(zip(talks, starts, strict=True), start=1):
        here = slice(start, start + len(talk.ids))
        ids[here], positions[:, here], segments[here] = talk.ids, talk.positions, number
        before = sum(num_image_tokens(grid) for _, grid in images)
        index[here] = np.where(talk.image_index >= 0, talk.image_index + before, -1)
        images += talk.images
    vision = vision_batch(images, [BUCKET], CONFIG.vision)
    found = np.asarray(ours(vision, ids[None], index[None], positions[:, None], segments[None]))
    return [found[start : start + len(talk.ids)] for talk, start in zip(talks, starts, strict=True)]


def alone(theirs, talk: Conversation) -> np.ndarray:
    with torch.no_grad():
        return theirs(**talk.torch_inputs(CONFIG)).logits[0].numpy()


def talk_about(name: str, seed: int = 0, tail: int = 25) -> Conversation:
    return Conversation.from_images(images_of(SIZES[name], 800 * 800), CONFIG, seed=seed, tail=tail)


@pytest.mark.parametrize("name", SIZES)
def test_images_of_any_grid_give_the_logits_of_transformers(ours, theirs, name):
    """Catches: windows cut wrongly at an edge, and images in another order. The row is padded on both sides."""
    talk = talk_about(name)
    (found,) = in_a_row(ours, [talk], [40])
    assert relative(found, alone(theirs, talk)) <= 1e-4


def test_an_image_that_arrives_in_an_observation_is_seen_from_there_on(ours, theirs):
    """Catches: positions that restart with an appended part. An earlier image and 200 tokens of dialogue precede."""
    image, later = images_of([(84, 140), (196, 112)], 800 * 800)
    talk = Conversation.from_images([image, later], CONFIG, seed=3, between=200)
    (found,) = in_a_row(ours, [talk], [0])
    expected = alone(theirs, talk)
    assert relative(found, expected) <= 1e-4
    changed = Conversation.from_images([image, (later[0][::-1].copy(), later[1])], CONFIG, seed=3, between=200)
    (other,) = in_a_row(ours, [changed], [0])
    first = int(np.flatnonzero(talk.image_index >= num_image_tokens(image[1]))[0])
    np.testing.assert_allclose(other[:first], found[:first], atol=1e-5)
    assert np.abs(other[first:] - found[first:]).max() > 0.1


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_the_padded_batch_of_transformers(ours, theirs, side):
    talks = [talk_about("less than one window", seed=1, tail=90), talk_about("odd grids", seed=2)]
    longest = max(len(talk.ids) for talk in talks)
    ids = torch.full((2, longest), CONFIG.pad_token_id)
    mask = torch.zeros((2, longest), dtype=torch.long)
    starts = [longest - len(talk.ids) if side == "left" else 0 for talk in talks]
    for row, (talk, start) in enumerate(zip(talks, starts, strict=True)):
        ids[row, start : start + len(talk.ids)] = torch.tensor(talk.ids)
        mask[row, start : start + len(talk.ids)] = 1
    inputs = [talk.torch_inputs(CONFIG) for talk in talks]
    with torch.no_grad():
        expected = theirs(
            input_ids=ids,
            attention_mask=mask,
            mm_token_type_ids=(ids == CONFIG.image_token_id).int(),
            pixel_values=torch.cat([x["pixel_values"] for x in inputs]),
            image_grid_thw=torch.cat([x["image_grid_thw"] for x in inputs]),
        ).logits.numpy()
    for row, (talk, start) in enumerate(zip(talks, starts, strict=True)):
        (found,) = in_a_row(ours, [talk], [start])
        assert relative(found, expected[row, start : start + len(talk.ids)]) <= 1e-4


def test_packed_rows_equal_each_conversation_alone_in_transformers(ours, theirs):
    """Catches attention, positions or images that leak from one conversation into the next."""
    talks = [talk_about(name, seed=i) for i, name in enumerate(["one window", "odd grids", "less than one window"])]
    starts = np.cumsum([0, *(len(talk.ids) for talk in talks[:-1])]).tolist()
    for found, talk in zip(in_a_row(ours, talks, starts), talks, strict=True):
        assert relative(found, alone(theirs, talk)) <= 1e-4


def test_prompts_of_four_thousand_tokens_agree(ours, theirs):
    """Catches: a wrong rotary frequency and skipped attention tiles, which a short prompt cannot show."""
    talk = talk_about("odd grids", seed=5, tail=4000 - 66)
    assert len(talk.ids) >= 4000
    (found,) = in_a_row(ours, [talk], [0], length=4096)
    assert relative(found, alone(theirs, talk)) <= 1e-4


def test_the_merger_alone_agrees(theirs, tmp_path):
    """Catches: a norm over the merge unit instead of each patch, and the wrong GELU. The input is random."""
    params = to_ours(theirs.state_dict(), CONFIG, tmp_path / "x")
    patches = np.random.default_rng(0).normal(size=(64, CONFIG.vision.hidden_size)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.model.visual.merger(torch.tensor(patches)).numpy()
    found = jax.jit(merge(build(CONFIG)[0], params).projector.__call__)(jnp.asarray(patches))
    assert relative(found, expected) <= 1e-5
