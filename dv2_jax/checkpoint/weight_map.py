"""The weight map between Hugging Face tensors and model parameters, used for loading and for export.

Hugging Face kernels are [outputs, inputs] with one tensor per layer; the model's are stacked, [layers, inputs...,
outputs...]. Hugging Face fuses query, key and value of the vision tower into one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from dv2_jax.model.model_config import ModelConfig

Form = Literal["same", "kernel", "convolution"]  # copied; transposed and reshaped; flattened and transposed

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
class WeightEntry:
    """Maps one parameter, or one layer of it, to a Hugging Face tensor or to one third of a fused QKV tensor."""

    jax_name: str
    hf_name: str  # in the key layout of the released checkpoints: model.* and visual.*
    form: Form
    layer: int | None = None
    qkv_index: int | None = None  # 0, 1, 2: query, key, value part of a fused tensor


def weight_entries(config: ModelConfig) -> Iterator[WeightEntry]:
    """Yield the entries of all parameters in the order in which checkpoints are written."""
    for jax_name, hf_name, form in _SINGLE:
        yield WeightEntry(jax_name, hf_name, form)
    if not config.text.tie_word_embeddings:
        yield WeightEntry("text.head.kernel", "lm_head.weight", "kernel")
    for layer in range(config.vision.depth):
        for part, form in (("kernel", "kernel"), ("bias", "same")):
            name = f"visual.blocks.{layer}.attn.qkv.{'weight' if part == 'kernel' else part}"
            for qkv_index, letter in enumerate("qkv"):
                yield WeightEntry(f"vision.blocks.{letter}.{part}", name, form, layer, qkv_index)
        for jax_name, hf_name, form in _VISION_BLOCK:
            yield WeightEntry(f"vision.blocks.{jax_name}", f"visual.blocks.{layer}.{hf_name}", form, layer)
    for layer in range(config.text.num_layers):
        for jax_name, hf_name, form in _TEXT_LAYER:
            yield WeightEntry(f"text.layers.{jax_name}", f"model.layers.{layer}.{hf_name}", form, layer)


def canonical_name(name: str) -> str:
    """Convert a tensor name of any transformers version to the key layout of the released checkpoints.

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
