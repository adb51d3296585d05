"""Export of a policy to the Hugging Face folder layout, which transformers and vLLM read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from dv2_jax.checkpoint.hf import write_weights
from dv2_jax.checkpoint.output_folder import output_folder
from dv2_jax.checkpoint.policy_spec import PolicySpec
from dv2_jax.config import ImageConfig
from dv2_jax.model.image_grid import IMAGE_MEAN, IMAGE_STD
from dv2_jax.model.params import Params

# ChatML. Message content is a string or a list of {"type": "text" | "image" | "video"} parts, as in transformers.
CHAT_TEMPLATE = """\
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}
{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- else %}{{ part.text }}
{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


def export_hf(
    output: str | Path,
    params: Params,
    spec: PolicySpec,
    image: ImageConfig,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
) -> str | Path:
    """Write weights, tokenizer, processor and generation settings to `output` atomically. Collective; process 0 writes.

    `output` is a local folder or a folder on any file system that fsspec supports (`gs://bucket/policy`). `image` has
    the size limits of the preprocessor, in pixels. Returns `output`.

    Raises:
        FileExistsError: `output` is a non-empty folder.
        ValueError: the policy has no tokenizer.
    """
    if spec.tokenizer_file is None:
        raise ValueError("a policy without a tokenizer cannot be exported")
    with output_folder(output) as folder:
        write_weights(folder, params, spec.config, dtype)
        folder.write_text("tokenizer.json", spec.tokenizer_file.read_text(encoding="utf-8"))
        folder.write_text("chat_template.jinja", CHAT_TEMPLATE)
        settings = _settings(spec, image)
        # Written last: without config.json no loader accepts the folder, so a partial export is not mistaken for one.
        settings["config.json"] = spec.config.to_hf(dtype)
        for name, document in settings.items():
            folder.write_text(name, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return output


def image_config(source_init: str) -> ImageConfig | None:
    """Return the image size limits that a policy was trained with, or None if its folder does not record them."""
    kind, _, where = source_init.partition(":")
    if kind == "hf" and (path := Path(where) / "preprocessor_config.json").is_file():
        document = json.loads(path.read_text())
        size = document.get("size") or {}
        low = document.get("min_pixels") or size.get("shortest_edge")
        high = document.get("max_pixels") or size.get("longest_edge")
        return ImageConfig(low, high) if low and high else None
    if kind == "checkpoint":
        from dv2_jax.checkpoint.policy_spec import run_directory

        path = run_directory(where) / "config.json"
        return ImageConfig(**json.loads(path.read_text())["image"]) if path.is_file() else None
    return None


def _settings(spec: PolicySpec, image: ImageConfig) -> dict[str, dict]:
    """Build the generation, tokenizer and preprocessor documents by file name."""
    config = spec.config
    tokenizer = json.loads(spec.tokenizer_file.read_text(encoding="utf-8"))
    added = tokenizer["added_tokens"]
    # transformers' Qwen2Tokenizer ignores the pre-tokenizer of tokenizer.json; PreTrainedTokenizerFast uses it.
    is_qwen_pretokenizer = any(part["type"] == "Split" for part in tokenizer["pre_tokenizer"].get("pretokenizers", ()))
    end_of_text = next(token["id"] for token in added if token["content"] == "<|endoftext|>")
    return {
        "generation_config.json": {
            "do_sample": False,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": sorted({config.eos_token_id, end_of_text}),
            "pad_token_id": config.pad_token_id,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer" if is_qwen_pretokenizer else "PreTrainedTokenizerFast",
            "processor_class": "Qwen2_5_VLProcessor",
            "added_tokens_decoder": {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
            },
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "errors": "replace",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": False,
            "model_max_length": config.text.max_position_embeddings,
            "chat_template": CHAT_TEMPLATE,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "min_pixels": image.min_pixels,
            "max_pixels": image.max_pixels,
            "size": {"shortest_edge": image.min_pixels, "longest_edge": image.max_pixels},
            "patch_size": config.vision.patch_size,
            "temporal_patch_size": config.vision.temporal_patch_size,
            "merge_size": config.vision.spatial_merge_size,
            "do_convert_rgb": True,
            "do_resize": True,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(IMAGE_MEAN),
            "image_std": list(IMAGE_STD),
            "resample": 3,
        },
    }
