"""Qwen2.5-VL: architecture, inputs, and the bridge to flat parameters."""

from dv2_jax.model.model_config import ModelConfig, TextConfig, VisionConfig
from dv2_jax.model.params import (
    GraphDef,
    Params,
    abstract_params,
    build,
    init_params,
    logical_axes,
    merge,
    split,
)
from dv2_jax.model.positions import mrope_positions
from dv2_jax.model.qwen2_5_vl import Qwen2_5_VL
from dv2_jax.model.vision_inputs import VisionBatch, VisionBucket, merged_tokens, vision_batch

__all__ = [
    "GraphDef",
    "ModelConfig",
    "Params",
    "Qwen2_5_VL",
    "TextConfig",
    "VisionBatch",
    "VisionBucket",
    "VisionConfig",
    "abstract_params",
    "build",
    "init_params",
    "logical_axes",
    "merge",
    "merged_tokens",
    "mrope_positions",
    "split",
    "vision_batch",
]
