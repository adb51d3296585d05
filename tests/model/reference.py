"""Reference model: the same random weights in transformers and here, and a conversation with images for both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from dv2_jax.checkpoint.hf import load_hf
from dv2_jax.model.image_grid import num_image_tokens
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import Params
from dv2_jax.model.positions import mrope_positions
from dv2_jax.model.vision_inputs import VisionBucket, vision_batch


def random_torch_model(config: ModelConfig, seed: int = 0):
    """Creates a model with random parameters, biases and norms included: constant ones would hide a swapped bias."""
    torch.manual_seed(seed)
    theirs = transformers.Qwen2_5_VLConfig(**config.to_hf("float32"))
    theirs._attn_implementation = "eager"
    model = transformers.Qwen2_5_VLForConditionalGeneration(theirs).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name or "ln_q" in name
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.copy_(torch.randn_like(parameter) * (0.1 if norm else fan_in**-0.5) + float(norm))
    return model


def to_ours(tensors: dict[str, torch.Tensor], config: ModelConfig, folder: Path) -> Params:
    """Converts weights (or gradients) from transformers' names to our parameters, through a checkpoint."""
    arrays = {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
    if config.text.tie_word_embeddings:
        arrays.pop("lm_head.weight", None)
    folder.mkdir(parents=True)
    save_file(arrays, folder / "model.safetensors")
    return load_hf(folder, config)


@dataclass
class Conversation:
    """One row of text, image, text, image, ..., text."""

    ids: np.ndarray  # [T]
    images: list
    positions: np.ndarray  # [3 T]
    image_index: np.ndarray  # [T]

    @property
    def grids(self):
        return [grid for _, grid in self.images]

    @classmethod
    def from_images(cls, images, config: ModelConfig, seed: int = 0, tail: int = 25, between: int = 0) -> Conversation:
        """Creates a row with `between` text tokens before each image (default: random) and `tail` after the last."""
        rng = np.random.default_rng(seed)
        ids, index, row = [], [], 0
        for _, grid in images:
            text = list(rng.integers(20, config.text.vocab_size, between or rng.integers(1, 12)))
            count = num_image_tokens(grid)
            ids += [*text, config.vision_start_token_id, *[config.image_token_id] * count, config.vision_end_token_id]
            index += [-1] * (len(text) + 1) + list(range(row, row + count)) + [-1]
            row += count
        ids = np.array([*ids, *rng.integers(20, config.text.vocab_size, tail)])
        index = np.array([*index, *[-1] * tail])
        positions, _ = mrope_positions(ids, [grid for _, grid in images], config)
        return cls(ids, list(images), positions, index)

    def vision(self, bucket: VisionBucket, config: ModelConfig):
        return vision_batch(self.images, [bucket], config.vision)

    def torch_inputs(self, config: ModelConfig) -> dict[str, torch.Tensor]:
        ids = torch.tensor(self.ids)[None]
        return dict(
            input_ids=ids,
            pixel_values=torch.tensor(np.concatenate([patches for patches, _ in self.images])),
            image_grid_thw=torch.tensor(self.grids),
            mm_token_type_ids=(ids == config.image_token_id).int(),
        )


def relative(ours, theirs) -> float:
    """Returns the largest difference relative to the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
