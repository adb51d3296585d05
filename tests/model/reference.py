"""The same random weights in transformers and here, and one conversation with pictures for both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

from dv2_jax.checkpoint.hf import load_hf
from dv2_jax.model import ModelConfig, Params, VisionBucket, merged_tokens, mrope_positions, vision_batch


def random_torch_model(config: ModelConfig, seed: int = 0):
    """Every parameter random, biases and norms too: with fresh weights a swapped bias would not show."""
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
    """Weights (or gradients) under transformers' names as our parameters, through a checkpoint."""
    arrays = {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}
    if config.text.tie_word_embeddings:
        arrays.pop("lm_head.weight", None)
    folder.mkdir(parents=True)
    save_file(arrays, folder / "model.safetensors")
    return load_hf(folder, config)


@dataclass
class Conversation:
    """Text, a picture, text, a picture, ..., text; one row."""

    ids: np.ndarray  # [T]
    pictures: list
    positions: np.ndarray  # [3 T]
    image_index: np.ndarray  # [T]

    @property
    def grids(self):
        return [grid for _, grid in self.pictures]

    @classmethod
    def of(cls, pictures, config: ModelConfig, seed: int = 0, tail: int = 25, between: int = 0) -> Conversation:
        """``between``: tokens of text before each picture, a few by default; ``tail``: after the last."""
        rng = np.random.default_rng(seed)
        ids, index, row = [], [], 0
        for _, grid in pictures:
            text = list(rng.integers(20, config.text.vocab_size, between or rng.integers(1, 12)))
            count = merged_tokens(grid)
            ids += [*text, config.vision_start_token_id, *[config.image_token_id] * count, config.vision_end_token_id]
            index += [-1] * (len(text) + 1) + list(range(row, row + count)) + [-1]
            row += count
        ids = np.array([*ids, *rng.integers(20, config.text.vocab_size, tail)])
        index = np.array([*index, *[-1] * tail])
        positions, _ = mrope_positions(ids, [grid for _, grid in pictures], config)
        return cls(ids, list(pictures), positions, index)

    def vision(self, bucket: VisionBucket, config: ModelConfig):
        return vision_batch(self.pictures, [bucket], config.vision)

    def torch_inputs(self, config: ModelConfig) -> dict[str, torch.Tensor]:
        ids = torch.tensor(self.ids)[None]
        return dict(
            input_ids=ids,
            pixel_values=torch.tensor(np.concatenate([patches for patches, _ in self.pictures])),
            image_grid_thw=torch.tensor(self.grids),
            mm_token_type_ids=(ids == config.image_token_id).int(),
        )


def relative(ours, theirs) -> float:
    """Largest difference relative to the largest value."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
