"""Architecture of Qwen2.5-VL: the published sizes, small ones, and conversion from and to `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int  # width of the text tower
    patch_size: int = 14  # pixels
    temporal_patch_size: int = 2  # frames; a still image is repeated
    spatial_merge_size: int = 2  # patches per side of one image token
    window_size: int = 112  # pixels per side of an attention window
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)  # blocks with full attention within an image
    in_channels: int = 3

    def __post_init__(self) -> None:
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"vision hidden_size {self.hidden_size} / num_heads {self.num_heads} must be a multiple of 4: "
                "RoPE uses half of a head's dimensions for the row, half for the column"
            )
        if self.window_size % (self.patch_size * self.spatial_merge_size):
            raise ValueError(f"window_size {self.window_size} must be a multiple of patch_size * spatial_merge_size")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def window_patches(self) -> int:
        """Returns the number of patches of a full window (64 as published)."""
        return (self.window_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """Returns the size of a flattened patch of the image processor (1176 as published)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mrope_section: tuple[int, int, int]  # number of rotary frequencies for time, height, width
    tie_word_embeddings: bool
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 128000

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size}, num_heads {self.num_heads}, num_kv_heads {self.num_kv_heads}: "
                "each must be a multiple of the next"
            )
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(f"mrope_section {self.mrope_section} must sum to half of head_dim {self.head_dim}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of both towers, and the ids of special tokens."""

    vision: VisionConfig
    text: TextConfig
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    bos_token_id: int = 151643
    eos_token_id: int = 151645
    pad_token_id: int = 151643

    def __post_init__(self) -> None:
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise ValueError(
                f"vision.out_hidden_size {self.vision.out_hidden_size} must equal "
                f"text.hidden_size {self.text.hidden_size}"
            )
        for name in _SPECIAL_IDS:
            if not 0 <= getattr(self, name) < self.text.vocab_size:
                raise ValueError(f"{name} {getattr(self, name)} is outside the vocabulary of {self.text.vocab_size}")

    @classmethod
    def preset(cls, name: str) -> ModelConfig:
        """Returns a published size (3b, 7b, 32b, 72b), or smol: SmolLM2-135M as text tower with a small vision tower."""
        try:
            return _PRESETS[name]
        except KeyError:
            raise ValueError(f"unknown model preset {name!r}; known: {', '.join(_PRESETS)}") from None

    @classmethod
    def tiny(
        cls,
        vocab_size: int,
        *,
        text: Mapping[str, Any] | None = None,
        vision: Mapping[str, Any] | None = None,
        **token_ids: int,
    ) -> ModelConfig:
        """Returns the laptop size: every part of the published architecture with 1.4 million parameters.

        `text` and `vision` replace fields of its towers; `token_ids` are the fields of this class for special tokens.
        """
        text_config = dataclasses.replace(_TINY_TEXT, vocab_size=vocab_size, **(text or {}))
        vision_config = dataclasses.replace(_TINY_VISION, out_hidden_size=text_config.hidden_size, **(vision or {}))
        return cls(vision_config, text_config, **token_ids)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelConfig:
        """Reads a transformers `config.json`, with the text fields at the root (as published) or in `text_config`.

        Raises ValueError for features that this model lacks: another model type or activation, sliding windows, scaled
        rotary frequencies.
        """
        if config.get("model_type") != "qwen2_5_vl":
            raise ValueError(f"model_type {config.get('model_type')!r} is not 'qwen2_5_vl'")
        text = {**config, **(config.get("text_config") or {})}
        vision = config["vision_config"]
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        unsupported = {
            "hidden_act": text.get("hidden_act", "silu") != "silu",
            "use_sliding_window": bool(text.get("use_sliding_window", False)),
            "rope type": rope_type not in ("default", "mrope"),
            "vision hidden_act": vision.get("hidden_act", "silu") != "silu",
        }
        if any(unsupported.values()):
            raise ValueError(f"unsupported in config.json: {', '.join(k for k, bad in unsupported.items() if bad)}")
        tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
        token_ids = {name: text[name] for name in _SPECIAL_IDS if text.get(name) is not None}
        if isinstance(token_ids.get("eos_token_id"), list):
            token_ids["eos_token_id"] = token_ids["eos_token_id"][0]
        # The published 3B omits values that equal the defaults of transformers.
        tower = {"depth": 32, "intermediate_size": 3420, "num_heads": 16}
        tower |= {f.name: vision[f.name] for f in dataclasses.fields(VisionConfig) if f.name in vision}
        if "fullatt_block_indexes" in tower:
            tower["fullatt_block_indexes"] = tuple(tower["fullatt_block_indexes"])
        return cls(
            vision=VisionConfig(**tower),
            text=TextConfig(
                vocab_size=text["vocab_size"],
                hidden_size=text["hidden_size"],
                intermediate_size=text["intermediate_size"],
                num_layers=text["num_hidden_layers"],
                num_heads=text["num_attention_heads"],
                num_kv_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
                mrope_section=tuple(rope.get("mrope_section", (16, 24, 24))),
                tie_word_embeddings=bool(tied),
                rope_theta=float(rope.get("rope_theta", text.get("rope_theta", 1e6))),
                rms_norm_eps=text.get("rms_norm_eps", 1e-6),
                max_position_embeddings=text.get("max_position_embeddings", 128000),
            ),
            **token_ids,
        )

    def to_hf(self, dtype: str = "bfloat16") -> dict[str, Any]:
        """Returns the `config.json` in the published, flat layout, which every transformers and vLLM release reads."""
        vision = dataclasses.asdict(self.vision)
        vision |= {
            "fullatt_block_indexes": list(self.vision.fullatt_block_indexes),
            "model_type": "qwen2_5_vl",
            "hidden_act": "silu",
            "in_chans": self.vision.in_channels,
            "spatial_patch_size": self.vision.patch_size,
            "tokens_per_second": 2,
        }
        text = self.text
        return {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            **{name: getattr(self, name) for name in _SPECIAL_IDS},
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "max_position_embeddings": text.max_position_embeddings,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_theta,
            "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
            "tie_word_embeddings": text.tie_word_embeddings,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "use_cache": True,
            "use_sliding_window": False,
            "sliding_window": 32768,
            "max_window_layers": text.num_layers,
            "torch_dtype": dtype,
            "vision_config": vision,
        }


_SPECIAL_IDS = (
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


_TINY_TEXT = TextConfig(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=384,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    mrope_section=(4, 6, 6),
    tie_word_embeddings=True,
    rope_theta=1e3,  # for rows of about 1,000 tokens; at 1e4 neighboring image columns are hardly distinguishable
    max_position_embeddings=4096,
)
_TINY_VISION = VisionConfig(
    depth=2, hidden_size=96, intermediate_size=224, num_heads=3, out_hidden_size=128, fullatt_block_indexes=(1,)
)


def _published(width: int, ff: int, layers: int, heads: int, kv_heads: int, vocab: int, vision_ff: int, tied: bool):
    vision = VisionConfig(32, 1280, vision_ff, 16, out_hidden_size=width)
    text = TextConfig(vocab, width, ff, layers, heads, kv_heads, (16, 24, 24), tied)
    return ModelConfig(vision, text)


def _smol() -> ModelConfig:
    """Returns SmolLM2-135M-Instruct (HuggingFaceTB; a Llama, so without biases) as text tower with a new vision tower.

    The vocabulary is SmolLM2's 49,152 tokens, then the added tokens of the protocol (`checkpoint.smol`), then padding to
    the next multiple of 128, so that tensor parallelism divides it.
    """
    return ModelConfig(
        VisionConfig(4, 192, 512, 3, out_hidden_size=576, fullatt_block_indexes=(1, 3)),
        TextConfig(
            vocab_size=49_280,
            hidden_size=576,
            intermediate_size=1536,
            num_layers=30,
            num_heads=9,
            num_kv_heads=3,
            mrope_section=(8, 12, 12),  # the published proportions, 1/4, 3/8, 3/8
            tie_word_embeddings=True,
            rope_theta=1e5,
            rms_norm_eps=1e-5,
            max_position_embeddings=8192,
        ),
        image_token_id=49_161,
        video_token_id=49_162,
        vision_start_token_id=49_158,
        vision_end_token_id=49_159,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )


# As in the config.json files of Qwen/Qwen2.5-VL-{3B,7B,32B,72B}-Instruct; smol is built around SmolLM2.
_PRESETS = {
    "3b": _published(2048, 11008, 36, 16, 2, 151936, 3420, tied=True),
    "7b": _published(3584, 18944, 28, 28, 4, 152064, 3420, tied=False),
    "32b": _published(5120, 27648, 64, 40, 8, 152064, 3456, tied=False),
    "72b": _published(8192, 29568, 80, 64, 8, 152064, 3456, tied=False),
    "smol": _smol(),
}
