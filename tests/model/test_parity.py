"""Parity with transformers on the same random weights: logits, every block alone, and the gradient of every parameter.

Images are structured, not square, of several sizes, larger and smaller than an attention window, with text before,
between and after them: one uniform square image would hide swapped axes, wrong windows and wrong positions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from flax import nnx  # noqa: E402

from dv2_jax.model.params import build, merge  # noqa: E402
from dv2_jax.model.rope import mrope_cos_sin, vision_cos_sin  # noqa: E402
from dv2_jax.model.vision_inputs import VisionBucket  # noqa: E402
from dv2_jax.ops.attention import causal_segment_attention  # noqa: E402
from tests.model.reference import Conversation, random_torch_model, relative, to_ours  # noqa: E402
from tests.model.samples import images_of, tiny_config  # noqa: E402

SMALL = [(120, 80), (70, 160), (56, 56)]  # each within one window's area
LARGE = [(300, 200), (90, 350), (252, 392)]  # several windows, cut at right and bottom edges


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request, tmp_path_factory):
    config = tiny_config(text={"tie_word_embeddings": request.param})
    theirs = random_torch_model(config)
    ours = to_ours(theirs.state_dict(), config, tmp_path_factory.mktemp("weights") / "x")
    return config, theirs, ours


def logits(graphdef, params, talk: Conversation, vision):
    model = merge(graphdef, params)
    segments = jnp.ones((1, len(talk.ids)), jnp.int32)
    embeds = model.embed(talk.ids[None], model.encode_images(vision), talk.image_index[None])
    hidden, _ = model.hidden(
        embeds, talk.positions[:, None], lambda q, k, v, c: (causal_segment_attention(q, k, v, segments), c)
    )
    return model.logits(hidden)[0]


@pytest.mark.parametrize(
    ("sizes", "max_pixels", "bucket"),
    [(SMALL, 112 * 112, VisionBucket.for_patches(3, 64)), (LARGE, 400 * 400, VisionBucket.for_patches(2, 832))],
    ids=["windows in rows", "windows permuted"],
)
def test_logits_agree_with_transformers(pair, sizes, max_pixels, bucket):
    config, theirs, ours = pair
    talk = Conversation.from_images(images_of(sizes, max_pixels), config)
    graphdef, _ = build(config)
    with torch.no_grad():
        expected = theirs(**talk.torch_inputs(config)).logits[0].numpy()
    found = jax.jit(lambda params, vision: logits(graphdef, params, talk, vision))(ours, talk.vision(bucket, config))
    assert np.abs(np.asarray(found) - expected).max() <= 1e-4
    assert expected.std() > 0.5, "logits too flat to differ"


def test_every_gradient_agrees_with_torch(pair, tmp_path):
    config, theirs, ours = pair
    talk = Conversation.from_images(images_of(LARGE, 400 * 400), config)
    weights = np.random.default_rng(1).normal(size=(len(talk.ids), config.text.vocab_size)).astype(np.float32)
    theirs.zero_grad()
    (theirs(**talk.torch_inputs(config)).logits[0] * torch.tensor(weights)).sum().backward()
    expected = to_ours({n: p.grad for n, p in theirs.named_parameters()}, config, tmp_path / "gradients")

    graphdef, _ = build(config)
    vision = talk.vision(VisionBucket.for_patches(2, 832), config)
    found = jax.jit(jax.grad(lambda params: (logits(graphdef, params, talk, vision) * weights).sum()))(ours)
    wrong = {name: relative(found[name], expected[name]) for name in expected}
    assert {name: error for name, error in wrong.items() if error > 1e-4} == {}


def test_every_text_layer_alone_agrees(pair):
    config, theirs, ours = pair
    talk = Conversation.from_images(images_of(SMALL, 112 * 112), config)
    recorded = _record(theirs.model.language_model.layers, theirs, talk, config)
    model = merge(build(config)[0], ours)
    graph, stacked = nnx.split(model.text.layers)
    text = config.text
    rope = mrope_cos_sin(
        talk.positions[:, None], head_dim=text.head_dim, theta=text.rope_theta, sections=text.mrope_section
    )
    segments = jnp.ones((1, len(talk.ids)), jnp.int32)

    @jax.jit
    def one(number, given):
        layer = nnx.merge(graph, jax.tree.map(lambda w: w[number], stacked))
        return layer(given, rope, lambda q, k, v, c: (causal_segment_attention(q, k, v, segments), c), None)[0]

    assert len(recorded) == text.num_layers
    for number, (given, expected) in enumerate(recorded):
        assert relative(one(number, given), expected) <= 1e-5, number


def test_every_vision_block_alone_agrees(pair):
    """Catches: an error of one block. Its input is that of transformers, so that errors neither add up nor cancel."""
    config, theirs, ours = pair
    talk = Conversation.from_images(images_of(LARGE[2:], 400 * 400), config)
    patches = len(talk.images[0][0])
    batch = talk.vision(VisionBucket.for_patches(1, patches), config)
    recorded = _record(theirs.model.visual.blocks, theirs, talk, config)
    graph, stacked = nnx.split(merge(build(config)[0], ours).vision.blocks)
    rope = vision_cos_sin(batch.coordinates, head_dim=config.vision.head_dim)
    windows = batch.window_segments.reshape(-1)[batch.window_index_inv][None]
    assert len(set(windows[0].tolist())) == 12, "3 rows of 4 windows, both edges cut"

    @jax.jit
    def one(number, given, segments):
        return nnx.merge(graph, jax.tree.map(lambda w: w[number], stacked))(given[None], rope, segments)[0]

    assert len(recorded) == config.vision.depth
    for number, (given, expected) in enumerate(recorded):
        full = number in config.vision.fullatt_block_indexes
        found = one(number, given, batch.image_segments if full else windows)
        assert relative(found, expected) <= 1e-5, number


def _record(blocks, model, talk, config):
    """Records (input, output) of each block in one forward pass."""
    recorded = []
    hooks = [
        block.register_forward_hook(
            lambda _, args, kwargs, out: recorded.append(
                (
                    (args[0] if args else kwargs["hidden_states"]).numpy(),
                    (out[0] if isinstance(out, tuple) else out).numpy(),
                )
            ),
            with_kwargs=True,
        )
        for block in blocks
    ]
    with torch.no_grad():
        model(**talk.torch_inputs(config))
    for hook in hooks:
        hook.remove()
    return recorded
