"""A Llama in llama.cpp's file format (GGUF): its shape, its weights in our layout, its tokenizer.

Weights are dequantized in numpy by the ``gguf`` package, which the extra ``smol`` brings.
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

# Ours, under text.layers., and the name in the file, under blk.N.; biases are not in it, because a Llama has none.
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
_SPECIAL = 3  # GGUF's token type of control tokens


class GGUFLlama:
    """One file: its metadata are read, its tensors are mapped and dequantized when they are asked for.

    Raises ImportError, with the command that helps, when ``gguf`` is not installed, and ValueError, naming the file,
    for a file of another architecture.
    """

    def __init__(self, path: str | Path):
        try:
            import gguf
        except ImportError:
            raise ImportError("reading a GGUF file needs the package gguf: pip install 'dv2_jax[smol]'") from None
        self.path = Path(path)
        self._dequantize = gguf.dequantize
        reader = gguf.GGUFReader(self.path)
        # Not the reader itself: it keeps an array object for each of the vocabulary's strings.
        self._fields = {name: field.contents() for name, field in reader.fields.items()}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        if (found := self._field("general.architecture")) != "llama":
            raise ValueError(f"{self.path}: architecture {found!r}, but only 'llama' is read")

    def _field(self, name: str) -> Any:
        if name not in self._fields:
            raise ValueError(f"{self.path}: no {name} in its metadata")
        return self._fields[name]

    def differences(self, config: TextConfig) -> list[str]:
        """What of ``config`` the file says otherwise; its vocabulary may be smaller."""
        said = {
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
            for name, value in said.items()
            if value != getattr(config, name)
        ]
        if len(self.tokens) > config.vocab_size:
            found.append(f"vocab_size is {len(self.tokens)}, should be at most {config.vocab_size}")
        return found

    @property
    def tokens(self) -> list[str]:
        """The vocabulary in the order of its ids, each in the printable alphabet of byte-level BPE."""
        return self._field("tokenizer.ggml.tokens")

    def tensor(self, name: str) -> Float[np.ndarray, "..."]:
        """A tensor as stored, [outputs inputs], in fp32. Raises ValueError for one that is not there."""
        if f"{name}.weight" not in self._tensors:
            raise ValueError(f"{self.path}: no tensor {name}.weight")
        stored = self._tensors[f"{name}.weight"]
        return np.asarray(self._dequantize(stored.data, stored.tensor_type), np.float32)

    def array(self, ours: str, shape: Sequence[int], heads: tuple[int, int]) -> Float[np.ndarray, "..."]:
        """One of our arrays below ``text.layers.``, of the stacked ``shape`` [L inputs... outputs...], in fp32.

        ``heads`` are those of queries and of keys. llama.cpp turns neighboring pairs (2i, 2i + 1) where the model
        was trained to turn (i, i + hd/2), and stores the rows of queries and keys in the order that this needs; here
        they go back. Biases are zero.
        """
        out = np.zeros(shape, np.float32)
        if ours not in _LAYER:
            return out
        for layer in range(shape[0]):
            stored = self.tensor(f"blk.{layer}.{_LAYER[ours]}")
            if ours in ("q.kernel", "k.kernel"):
                stored = _halves(stored, heads[ours == "k.kernel"])
            out[layer] = stored.T.reshape(shape[1:])
        return out

    def tokenizer(self, added: Sequence[str], ordinary: Sequence[str]) -> dict:
        """A ``tokenizer.json`` document: the file's vocabulary, then those of ``added`` that it has not, as added tokens.

        Those in ``ordinary`` are not flagged as special. Raises ValueError for another kind of tokenizer than
        SmolLM's, whose splitting rule is written down here.
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
        # An added token that is in the vocabulary keeps its id; the others get the ids that follow it.
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


def _halves(rows: Float[np.ndarray, "O I"], heads: int) -> Float[np.ndarray, "O I"]:
    """Rows 0, 2, 4, ... of each head first, then 1, 3, 5, ...: the inverse of llama.cpp's order."""
    outputs, inputs = rows.shape
    return rows.reshape(heads, outputs // heads // 2, 2, inputs).swapaxes(1, 2).reshape(outputs, inputs)
