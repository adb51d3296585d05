"""Which tensor of a published checkpoint is which part of which of our arrays. Data, read in both directions.

Published kernels are [outputs, inputs], one tensor a layer; ours are [layers, inputs..., outputs...]. The vision
tower's query, key and value are one published tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dv2_jax.model.model_config import ModelConfig

Form = Literal["same", "kernel", "convolution"]  # copied; transposed and reshaped; flattened, then transposed

_TEXT_LAYER: tuple[tuple[str, str, Form], ...] = (
    ("attention_norm.scale", "input_layernorm.weight", "same"),
    *((f"{x}.kernel", f"self_attn.{x}_proj.weight", "kernel") for x in "qkvo"),
    *((f"{x}.bias", f"self_attn.{x}_proj.bias", "same") for x in "qkv"),
    ("mlp_norm.scale", "post_attention_layernorm.weight", "same"),
    *((f"mlp.{x}.kernel", f"mlp.{x}_proj.weight", "kernel") for x in ("gate", "up", "down")),
)
_VISION_BLOCK: tuple[tuple[str, str, Form], ...] = (
    ("attention_norm.scale", "norm1.weight", "same"),
    ("mlp_norm.scale", "norm2.weight", "same"),
    ("o.kernel", "attn.proj.weight", "kernel"),
    ("o.bias", "attn.proj.bias", "same"),
    *((f"mlp.{x}.kernel", f"mlp.{x}_proj.weight", "kernel") for x in ("gate", "up", "down")),
    *((f"mlp.{x}.bias", f"mlp.{x}_proj.bias", "same") for x in ("gate", "up", "down")),
)
_SINGLE: tuple[tuple[str, str, Form], ...] = (
    ("vision.patch_embed.kernel", "visual.patch_embed.proj.weight", "convolution"),
    ("projector.norm.scale", "visual.merger.ln_q.weight", "same"),
    ("projector.hidden.kernel", "visual.merger.mlp.0.weight", "kernel"),
    ("projector.hidden.bias", "visual.merger.mlp.0.bias", "same"),
    ("projector.out.kernel", "visual.merger.mlp.2.weight", "kernel"),
    ("projector.out.bias", "visual.merger.mlp.2.bias", "same"),
    ("text.embedding", "model.embed_tokens.weight", "same"),
    ("text.norm.scale", "model.norm.weight", "same"),
)


@dataclass(frozen=True)
class Entry:
    """One of our arrays, or one layer of it, as a published tensor or as one third of it."""

    ours: str
    published: str  # in the layout of the released checkpoints: model.* and visual.*
    form: Form
    layer: int | None = None
    third: int | None = None  # 0, 1, 2: the query, key, value part of a fused tensor


def entries(config: ModelConfig) -> Iterator[Entry]:
    """Every part of every array, in the order in which checkpoints are written."""
    for ours, published, form in _SINGLE:
        yield Entry(ours, published, form)
    if not config.text.tie_word_embeddings:
        yield Entry("text.head.kernel", "lm_head.weight", "kernel")
    for layer in range(config.vision.depth):
        for part, form in (("kernel", "kernel"), ("bias", "same")):
            name = f"visual.blocks.{layer}.attn.qkv.{'weight' if part == 'kernel' else part}"
            for third, letter in enumerate("qkv"):
                yield Entry(f"vision.blocks.{letter}.{part}", name, form, layer, third)
        for ours, published, form in _VISION_BLOCK:
            yield Entry(f"vision.blocks.{ours}", f"visual.blocks.{layer}.{published}", form, layer)
    for layer in range(config.text.num_layers):
        for ours, published, form in _TEXT_LAYER:
            yield Entry(f"text.layers.{ours}", f"model.layers.{layer}.{published}", form, layer)


def canonical(name: str) -> str:
    """A tensor name of either generation of key layouts, as the released checkpoints spell it.

    >>> canonical("model.language_model.layers.0.mlp.up_proj.weight"), canonical("model.visual.merger.ln_q.weight")
    ('model.layers.0.mlp.up_proj.weight', 'visual.merger.ln_q.weight')
    """
    for new, old in (
        ("model.language_model.", "model."),
        ("language_model.model.", "model."),
        ("model.visual.", "visual."),
    ):
        if name.startswith(new):
            return old + name[len(new) :]
    return name
