"""Model FLOPs against the matmuls of the model's traced program."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dv2_jax.aot import flops
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import build, merge
from dv2_jax.model.vision_inputs import VisionBucket, vision_batch
from dv2_jax.ops.attention import causal_segment_attention
from tests.model.samples import tiny_config

CONFIG = tiny_config()


def products(jaxpr) -> float:
    """Returns the FLOPs of all matmuls of a traced function, with loops multiplied out."""
    total = 0.0
    for equation in jaxpr.eqns:
        inner = [x for x in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr) if is_jaxpr(x)]
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2.0 * math.prod(out) * math.prod(left[d] for d in contracted)
        else:
            times = equation.params["length"] if equation.primitive.name == "scan" else 1
            total += times * sum(products(getattr(x, "jaxpr", x)) for x in inner)
    return total


def is_jaxpr(x) -> bool:
    return hasattr(x, "eqns") or hasattr(getattr(x, "jaxpr", None), "eqns")


def counted(function, *arguments) -> float:
    graphdef, params = build(CONFIG)
    return products(
        jax.make_jaxpr(lambda params, *xs: function(merge(graphdef, params), *xs))(params, *arguments).jaxpr
    )


@pytest.mark.parametrize("tokens", [16, 96])  # up to 128 the scores of a row are one product
def test_text_is_counted_as_the_model_computes_it(tokens):
    """Catches: a missing matmul, query heads counted as key/value heads, a causal factor outside of attention."""
    rows = 3
    ids = jnp.zeros((rows, tokens), jnp.int32)

    def forward(model, ids):
        segments = jnp.ones_like(ids)
        attend = lambda q, k, v, cache: (causal_segment_attention(q, k, v, segments), cache)  # noqa: E731
        hidden, _ = model.hidden(model.embed(ids), jnp.zeros((3, rows, tokens), jnp.int32), attend)
        return model.logits(hidden)

    text = CONFIG.text
    hidden_by_mask = rows * text.num_layers * 4 * text.num_heads * text.head_dim * tokens * (tokens - 1) / 2
    assert counted(forward, ids) == flops.text_flops(text, rows=rows, tokens=tokens) + hidden_by_mask


@pytest.mark.parametrize("length", [32, 128])  # shorter and longer than a window of 64
def test_images_are_counted_as_the_model_computes_them(length):
    """Catches: windowed blocks counted as full attention."""
    bucket = VisionBucket(3, length, 3 * length // 64)
    batch = vision_batch([], (bucket,), CONFIG.vision)
    vision = flops.vision_flops(CONFIG.vision, rows=3, length=length)
    projector = flops.projector_flops(CONFIG.vision, patches=3 * length)
    assert counted(lambda model, batch: model.encode_images(batch), batch) == vision + projector


def test_chunked_prefill_costs_as_much_as_one_prefill():
    """Catches: a prefix that is not attended to, or attended to twice."""
    text = ModelConfig.preset("7b").text
    chunks = [flops.text_flops(text, rows=2, tokens=256, cached=256 * i, logits=0) for i in range(4)]
    assert np.isclose(sum(chunks), flops.text_flops(text, rows=2, tokens=1024, logits=0), rtol=1e-12)


def test_six_operations_per_parameter_and_token_of_the_published_size():
    """Catches: a deviation from 6 FLOPs per parameter and token (7B without its embedding), or frozen parts counted."""
    model = ModelConfig.preset("7b")
    step = flops.training_flops(model, rows=1, tokens=1)
    assert step == pytest.approx(6 * 7.07e9, rel=0.01)
    images = (4, 4096)
    trained, frozen = (
        flops.training_flops(model, rows=1, tokens=64, images=images, freeze=freeze)
        for freeze in ((), ("vision", "projector"))
    )
    tower = flops.forward_flops(model, rows=1, tokens=64, images=images) - flops.text_flops(
        model.text, rows=1, tokens=64
    )
    assert trained - frozen == pytest.approx(2 * tower)
