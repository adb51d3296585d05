"""Tests packing and the input pipeline: layout, images, completeness, and exact resumption."""

import hashlib
import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dv2_jax.config import AgentConfig, ImageConfig
from dv2_jax.data.chat_encoder import ImageInput
from dv2_jax.data.loader import image_buckets, packed_batches, stream_batches
from dv2_jax.data.packing import Example, Packer, PackSpec, build_batch, first_fit_decreasing, pack_step
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.positions import mrope_positions
from dv2_jax.model.vision_inputs import VisionBucket

IMAGE, PAD = 10, 14
MODEL = ModelConfig.tiny(
    64, image_token_id=IMAGE, video_token_id=11, vision_start_token_id=12, vision_end_token_id=13, bos_token_id=PAD,
    eos_token_id=15, pad_token_id=PAD,
)  # fmt: skip
SPEC = PackSpec(
    MODEL, rows=4, row_tokens=96, image_buckets=(VisionBucket.for_patches(2, 64), VisionBucket.for_patches(6, 64))
)


def image_input(seed, height=4, width=4):
    one = np.random.default_rng(seed).normal(size=(height * width, 3, 1, 196)).astype(np.float32)
    patches = np.repeat(one, 2, axis=2).reshape(height * width, -1)
    return ImageInput(hashlib.sha256(patches.tobytes()).hexdigest()[:24], patches, (1, height, width))


def example(seed, length, images=()):
    rng = np.random.default_rng(seed)
    ids = [int(i) for i in rng.integers(20, 64, 3)]
    for p in images:
        ids += [12, *[IMAGE] * p.tokens, 13]
    ids += [int(i) for i in rng.integers(20, 64, max(length - len(ids), 2))]
    weight = (rng.random(len(ids)) < 0.5).astype(np.float32)
    return Example(ids, weight, tuple(images), rng.normal(size=len(ids)).astype(np.float32), float(rng.normal()))


def make_examples(count, seed=0):
    rng = np.random.default_rng(seed)
    shared = [image_input(1), image_input(2, 2, 6)]
    return [
        example([seed, i], int(rng.integers(20, 97)), [shared[i % 2]] if i % 3 else [image_input(100 + i, 2, 4)])
        for i in range(count)
    ]


def unpack(batch):
    """Yields the row and the columns of every segment of a batch."""
    for b in range(batch.token_ids.shape[0]):
        for segment in range(1, int(batch.segment_ids[b].max()) + 1):
            at = np.flatnonzero(batch.segment_ids[b] == segment)
            assert np.all(np.diff(at) == 1)
            yield b, {name: getattr(batch, name)[..., b, at] for name in (
                "token_ids", "loss_weight", "targets", "behavior_logprobs", "advantages", "positions",
                "image_index")}  # fmt: skip


def test_every_example_is_packed_completely_and_in_its_own_columns():
    """Catches an off-by-one between tokens and their log-probs, and positions that continue into the next segment."""
    examples = {tuple(e.token_ids): e for e in make_examples(40)}
    seen = set()
    for batch in pack_step(list(examples.values()), SPEC):
        for _, got in unpack(batch):
            e = examples[tuple(got["token_ids"].tolist())]
            seen.add(tuple(e.token_ids))
            np.testing.assert_array_equal(got["targets"][:-1], e.token_ids[1:])
            np.testing.assert_array_equal(got["loss_weight"], [*e.loss_weight[1:], 0.0])
            np.testing.assert_array_equal(got["behavior_logprobs"], [*e.behavior_logprobs[1:], 0.0])
            np.testing.assert_allclose(got["advantages"], [*[e.advantage] * (len(e.token_ids) - 1), 0.0], rtol=1e-6)
            np.testing.assert_array_equal(
                got["positions"], mrope_positions(e.token_ids, [p.grid for p in e.images], MODEL)[0]
            )
        padding = batch.segment_ids == 0
        assert not batch.loss_weight[padding].any() and np.all(batch.token_ids[padding] == PAD)
    assert len(seen) == 40


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_placeholder_reads_the_patches_of_its_own_image(groups):
    """Catches images exchanged between examples or groups, and a shared image encoded twice or dropped."""
    examples = make_examples(20)
    spec = PackSpec(MODEL, 4, 96, SPEC.image_buckets, groups)
    by_ids = {tuple(e.token_ids): e for e in examples}
    for batch in pack_step(examples, spec):
        distinct = [set() for _ in range(groups)]
        for b, got in unpack(batch):
            g = b // (4 // groups)
            (p,) = by_ids[tuple(got["token_ids"].tolist())].images
            distinct[g].add(p.digest)
            vision = jax.tree.map(lambda x, g=g: x[g], batch.vision)
            squares = vision.patches.reshape(-1, 4, vision.patches.shape[-1])
            rows = got["image_index"][got["image_index"] >= 0]
            shown = squares[vision.merge_index[rows]]  # what embedding row i of the group is computed from
            np.testing.assert_array_equal(shown.reshape(-1, 3, 196), p.patches.reshape(-1, 3, 2, 196)[:, :, 0])
        for g in range(groups):
            assert int((batch.vision.merge_index[g] < batch.vision.merge_index.shape[1]).sum()) == sum(
                p.tokens for p in {p.digest: p for e in examples for p in e.images}.values() if p.digest in distinct[g]
            )


@settings(max_examples=60)
@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 6), st.integers(0, 10))
def test_first_fit_places_all_it_can(lengths, rows, priority):
    """Catches rows over their capacity, items lost or assigned twice, and an item refused although a row has room."""
    assigned, left = first_fit_decreasing(lengths, rows, 50, priority=min(priority, len(lengths)))
    room = [50 - sum(lengths[i] for i in row) for row in assigned]
    assert min(room) >= 0
    assert sorted(left + [i for row in assigned for i in row]) == list(range(len(lengths)))
    assert all(lengths[i] > max(room) for i in left)


def test_a_stream_packs_tightly_and_no_example_starves():
    """Catches long examples that short ones displace from every batch, and rows left half empty."""
    examples = [example(i, 8 + 7 * i % 31 if i % 10 else 80) for i in range(400)]
    number = {tuple(e.token_ids): i for i, e in enumerate(examples)}
    packer, packed = Packer(SPEC), []
    for item in examples:
        packer.add(item)
        if not packer.needs_more():
            packed.append(build_batch(packer.pop_batch(), SPEC))
    while packer.pool:
        packed.append(build_batch(packer.pop_batch(), SPEC))
    assert np.mean([(b.segment_ids > 0).mean() for b in packed[:-2]]) > 0.93
    for k, batch in enumerate(packed):
        for _, got in unpack(batch):
            expected_batch = sum(len(e.token_ids) for e in examples[: number[tuple(got["token_ids"].tolist())]]) / (
                4 * 96
            )
            assert abs(k - expected_batch) < 3.5


def test_what_cannot_be_packed_is_named():
    """Catches silent truncation of a long example, and images that do not match their placeholders."""
    with pytest.raises(ValueError, match="97 tokens does not fit a row of row_tokens=96"):
        pack_step([example(0, 97)], SPEC)
    with pytest.raises(ValueError, match="fits none of image_buckets"):
        pack_step(
            [example(0, 90, [image_input(i, 8, 8) for i in range(7)])], PackSpec(MODEL, 1, 400, SPEC.image_buckets)
        )
    e = example(0, 40, [image_input(0)])
    with pytest.raises(ValueError, match="placeholders"):
        pack_step([Example(e.token_ids[:5] + e.token_ids[6:], e.loss_weight[1:], e.images)], SPEC)
    with pytest.raises(ValueError, match="loss_weight has 3 entries for 4 tokens"):
        pack_step([Example([20, 21, 22, 23], [0, 1, 1])], SPEC)


def test_the_default_image_buckets_hold_the_fullest_trajectory():
    """Catches a trajectory within the agent's budget that fits no bucket, and a tiny run with two programs."""
    image, agent = ImageConfig(), AgentConfig()
    tiny = image_buckets(image, agent, MODEL, rows=8, row_tokens=1024)
    assert len(tiny) == 1 and tiny[0].rows >= agent.max_images
    real = image_buckets(
        ImageConfig(max_pixels=16384 * 28**2),
        AgentConfig(max_images=50),
        ModelConfig.preset("7b"),
        rows=1,
        row_tokens=24576,
    )
    assert real[-1].rows * real[-1].length >= 2 * 4 * 24576 > real[0].rows * real[0].length


def test_without_images_the_image_bucket_is_empty():
    """Catches a text-only run that computes an empty vision tower, and one that drops an image silently."""
    buckets = image_buckets(ImageConfig(), AgentConfig(max_images=0), MODEL, rows=8, row_tokens=1024)
    spec = PackSpec(MODEL, 2, 96, buckets, groups=2)
    [batch] = pack_step([example(0, 40), example(1, 40)], spec)
    assert batch.vision.patches.shape[:2] == (2, 0) and batch.vision.merge_index.shape == (2, 0)
    with pytest.raises(ValueError, match="fits none of image_buckets"):
        pack_step([example(0, 40, [image_input(0)])], spec)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_the_pipeline_resumes_bit_for_bit_and_shuffles_by_seed():
    """Catches prefetched or waiting examples lost or repeated on resume, and an order that depends on timing."""
    records = list(range(50))

    def encode(i):
        return None if i % 7 == 0 else example(i, 20 + i, [image_input(i)])

    def stream(seed=0, **options):
        return packed_batches(records, encode, SPEC, seed=seed, microbatches=2, **options)

    it = stream()
    first = [next(it) for _ in range(3)]
    state = it.get_state()
    rest = [next(it) for _ in range(12)]
    again = stream()
    again.set_state(state)
    assert all(same(a, b) for a, b in zip(rest, (next(again) for _ in range(12)), strict=True))
    unthreaded = stream(prefetch=0)
    assert all(same(a, next(unthreaded)) for a in first)
    assert not same(first[0], next(stream(seed=1)))
    assert len({float(b.denominator) for b in first[0]}) == 1

    # Over complete epochs every record is seen equally often.
    counts = np.zeros(50, int)
    by_ids = {tuple(encode(i).token_ids): i for i in records if i % 7}
    for step in [*first, *rest]:
        for batch in step:
            for _, got in unpack(batch):
                counts[by_ids[tuple(got["token_ids"].tolist())]] += 1
    kept = counts[[i for i in records if i % 7]]
    assert kept.min() >= 1 and kept.max() - kept.min() <= 2 and not counts[::7].any()


def test_an_endless_generator_resumes_bit_for_bit():
    """Catches a resumed stream that restarts, or that loses the examples waiting in the packer."""

    def stream():
        return (example(i, 10 + 13 * i % 70) for i in itertools.count())

    it = stream_batches(stream, SPEC, microbatches=2)
    for _ in range(4):
        next(it)
    state, expected = it.get_state(), [next(it) for _ in range(4)]
    again = stream_batches(stream, SPEC, microbatches=2)
    again.set_state(state)
    assert all(same(a, b) for a, b in zip(expected, (next(again) for _ in range(4)), strict=True))


def test_a_batch_without_images_has_the_same_shapes():
    """Catches a text-only batch that would compile another program."""
    with_image = build_batch([[example(0, 40, [image_input(0)])], [], [], []], SPEC)
    without = build_batch([[example(1, 40)], [], [], []], SPEC)
    assert jax.tree.map(lambda x: x.shape, with_image) == jax.tree.map(lambda x: x.shape, without)
