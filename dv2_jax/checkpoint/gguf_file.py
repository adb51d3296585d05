"""Reader for Llama models in llama.cpp's file format (GGUF): configuration, weights and tokenizer.

Weights are dequantized in numpy by the package `gguf` of the extra `smol`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Float
from tokenizers import decoders, models, pre_tokenizers

from dv2_jax.model.model_config import TextConfig

# Parameter name below `text.layers.` -> GGUF tensor name below `blk.N.`; Llama has no biases.
_LAYER = {
    "attention_norm.scale": "attn_norm",
    "q.kernel": "attn_q",
    "k.kernel": "attn_k",
    "v.kernel": "attn_v",
    "o.kernel": "attn_output",
    "mlp_norm.scale": "ffn_norm",
    "mlp.gate.kernel": "ffn_gate",
    "mlp.up.kernel": "ffn_up",
    "mlp.down.kernel": "ffn_down",
}
_SPECIAL = 3  # GGUF token type CONTROL


class GGUFLlama:
    """A GGUF file: metadata is read at construction; tensors are memory-mapped and dequantized on access.

    Raises:
        ImportError: the package `gguf` is not installed; the message has the install command.
        ValueError: the file has another architecture; the message names the file.
    """

    def __init__(self, path: str | Path):
        try:
            import gguf
        except ImportError:
            raise ImportError("reading a GGUF file needs the package gguf: pip install 'dv2_jax[smol]'") from None
        self.path = Path(path)
        self._dequantize = gguf.dequantize
        reader = gguf.GGUFReader(self.path)
        # The reader itself is not kept: it holds one array object per string of the vocabulary.
        self._fields = {name: field.contents() for name, field in reader.fields.items()}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        if (found := self._field("general.architecture")) != "llama":
            raise ValueError(f"{self.path}: architecture {found!r}, but only 'llama' is read")

    def _field(self, name: str) -> Any:
        if name not in self._fields:
            raise ValueError(f"{self.path}: no {name} in its metadata")
        return self._fields[name]

    def differences(self, config: TextConfig) -> list[str]:
        """List the fields in which the file differs from `config`; the file's vocabulary may be smaller."""
        stored = {
            "hidden_size": self._field("llama.embedding_length"),
            "intermediate_size": self._field("llama.feed_forward_length"),
            "num_layers": self._field("llama.block_count"),
            "num_heads": self._field("llama.attention.head_count"),
            "num_kv_heads": self._field("llama.attention.head_count_kv"),
            "rope_theta": self._field("llama.rope.freq_base"),
            "rms_norm_eps": float(str(np.float32(self._field("llama.attention.layer_norm_rms_epsilon")))),
            "max_position_embeddings": self._field("llama.context_length"),
            "tie_word_embeddings": "output.weight" not in self._tensors,
        }
        found = [
            f"{name} is {value}, should be {getattr(config, name)}"
            for name, value in stored.items()
            if value != getattr(config, name)
        ]
        if len(self.tokens) > config.vocab_size:
            found.append(f"vocab_size is {len(self.tokens)}, should be at most {config.vocab_size}")
        return found

    @property
    def tokens(self) -> list[str]:
        """The vocabulary in id order, in the printable alphabet of byte-level BPE."""
        return self._field("tokenizer.ggml.tokens")

    def tensor(self, name: str) -> Float[np.ndarray, "..."]:
        """Dequantize a tensor to fp32 in its stored layout [outputs inputs].

        Raises:
            ValueError: the file has no such tensor.
        """
        if f"{name}.weight" not in self._tensors:
            raise ValueError(f"{self.path}: no tensor {name}.weight")
        stored = self._tensors[f"{name}.weight"]
        return np.asarray(self._dequantize(stored.data, stored.tensor_type), np.float32)

    def array(self, jax_name: str, shape: Sequence[int], heads: tuple[int, int]) -> Float[np.ndarray, "..."]:
        """Read a parameter below `text.layers.` in the stacked shape [L inputs... outputs...], in fp32; biases are zero.

        `heads` is (query heads, key heads). llama.cpp applies RoPE to pairs (2i, 2i + 1), the model was trained with
        pairs (i, i + hd/2); the file's query and key rows are permuted accordingly, and are permuted back here.
        """
        out = np.zeros(shape, np.float32)
        if jax_name not in _LAYER:
            return out
        for layer in range(shape[0]):
            stored = self.tensor(f"blk.{layer}.{_LAYER[jax_name]}")
            if jax_name in ("q.kernel", "k.kernel"):
                stored = _undo_rope_permutation(stored, heads[jax_name == "k.kernel"])
            out[layer] = stored.T.reshape(shape[1:])
        return out

    def tokenizer(self, added: Sequence[str], ordinary: Sequence[str]) -> dict:
        """Build a `tokenizer.json` document: the file's vocabulary, then the missing tokens of `added` as added tokens.

        Tokens in `ordinary` are not flagged as special.

        Raises:
            ValueError: the tokenizer is not SmolLM's, whose pre-tokenizer is implemented here.
        """
        kind = self._field("tokenizer.ggml.model"), self._field("tokenizer.ggml.pre")
        if kind != ("gpt2", "smollm"):
            raise ValueError(f"{self.path}: tokenizer {kind}, but only ('gpt2', 'smollm') is known")
        vocabulary = {token: id_ for id_, token in enumerate(self.tokens)}
        types = self._field("tokenizer.ggml.token_type")
        names = [token for token, type_ in zip(self.tokens, types) if type_ == _SPECIAL]
        names += [name for name in added if name not in names]
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        document = json.loads(tokenizer.to_str())
        merges = [merge.split(" ") for merge in self._field("tokenizer.ggml.merges")]
        document["model"].update(vocab=vocabulary, merges=merges)
        # An added token in the vocabulary keeps its id; the others get the ids after the vocabulary.
        following = iter(range(len(vocabulary), len(vocabulary) + len(names)))
        document["added_tokens"] = [
            {
                "id": vocabulary[name] if name in vocabulary else next(following),
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": name not in ordinary,
            }
            for name in names
        ]
        return document


def _undo_rope_permutation(rows: Float[np.ndarray, "O I"], heads: int) -> Float[np.ndarray, "O I"]:
    """Undo llama.cpp's RoPE permutation: rows 0, 2, 4, ... of each head first, then rows 1, 3, 5, ..."""
    outputs, inputs = rows.shape
    return rows.reshape(heads, outputs // heads // 2, 2, inputs).swapaxes(1, 2).reshape(outputs, inputs)
