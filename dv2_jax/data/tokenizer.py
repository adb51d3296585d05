"""Qwen's tokenizer, published or tiny: byte-level BPE with Qwen2's pre-tokenization and Qwen2.5's added tokens.

Added tokens are parsed according to the source of the text:

- `encode(text, allow_special=True)`: every added token is parsed. Only for this project's own templates.
- `encode(text)`: `<tool_call>` and `</tool_call>` are single tokens, as in Qwen's tokenizer (they are added but not
  special); `<|im_end|>` and other control tokens are ordinary characters. For prompts and assistant turns.
- `encode_untrusted(text)`: no added token, not even `<tool_call>`. For tool output.

Decoding never drops a token, so text and ids remain aligned.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

# Qwen2's pre-tokenization: contractions, a word with one leading symbol, single digits, symbols, white space.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The added tokens of Qwen2.5 in the order of their ids (151643 ... 151664 in the published vocabulary).
ADDED_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
)  # fmt: skip
TOOL_TOKENS = ("<tool_call>", "</tool_call>")
_FLAGGED_SPECIAL = frozenset(ADDED_TOKENS[:14])  # the file's own `special` flag, which skip_special_tokens obeys
PACKAGE_FILE = "toy/assets/tokenizer.json"  # the small vocabulary that ships with the package


def _byte_alphabet() -> dict[str, int]:
    """Returns the inverse of GPT-2's byte-to-character table: from printable character to byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + index): byte for index, byte in enumerate(shifted)})
    return table


_CHAR_TO_BYTE = _byte_alphabet()
_BYTE_TO_CHAR = {byte: char for char, byte in _CHAR_TO_BYTE.items()}


def _splitter(names: Sequence[str]) -> re.Pattern[str]:
    return re.compile("(" + "|".join(re.escape(name) for name in names) + ")")


class Tokenizer:
    """Encodes text and decodes ids with one `tokenizer.json` (the format of the `tokenizers` library)."""

    def __init__(self, document: dict):
        added = {entry["content"]: entry["id"] for entry in document.get("added_tokens", ())}
        missing = [name for name in ADDED_TOKENS[:16] if name not in added]
        if missing:
            raise ValueError(f"the tokenizer lacks Qwen2.5's added tokens {missing}; it is of another family")
        self._document = document
        self._ids = added
        # Added tokens are matched here, depending on the caller's trust in the text; the library matches all of them.
        self._plain = tokenizers.Tokenizer.from_str(json.dumps({**document, "added_tokens": []}))
        self._splitters = {True: _splitter(list(added)), False: _splitter(TOOL_TOKENS)}
        vocabulary: dict[str, int] = document["model"]["vocab"]
        self.vocab_size: int = 1 + max(max(vocabulary.values()), max(added.values()))
        self._bytes: dict[int, bytes] = {id_: name.encode() for name, id_ in added.items()}
        for piece, id_ in vocabulary.items():
            self._bytes.setdefault(id_, bytes(_CHAR_TO_BYTE[char] for char in piece))

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Reads a `tokenizer.json`, or the one in the folder `path`."""
        path = Path(path)
        path = path / "tokenizer.json" if path.is_dir() else path
        return cls(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def from_package(cls) -> Tokenizer:
        """Reads the small vocabulary of the tiny model, which ships with the package."""
        resource = importlib.resources.files("dv2_jax").joinpath(PACKAGE_FILE)
        return cls(json.loads(resource.read_text(encoding="utf-8")))

    @classmethod
    def from_tiktoken_vocab(cls, path: str | Path) -> Tokenizer:
        """Builds the published tokenizer from a rank file (`qwen.tiktoken`: base64 bytes, rank).

        A rank file lists no merges. The merge of a token is the pair that remains after its bytes were merged with
        all lower ranks, which is the last merge of a rank-based encoder.
        """
        ranks: dict[bytes, int] = {}
        for line in Path(path).read_bytes().splitlines():
            if line.strip():
                piece, rank = line.split()
                ranks[base64.b64decode(piece)] = int(rank)
        vocabulary = {_printable(piece): rank for piece, rank in ranks.items()}
        merges = []
        for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
            if len(piece) > 1:
                merges.append([_printable(part) for part in _last_merge(piece, ranks, rank)])
        return cls(_document(vocabulary, merges))

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Encodes trusted text; the module docstring describes `allow_special`."""
        ids: list[int] = []
        for index, part in enumerate(self._splitters[allow_special].split(text)):
            if index % 2:
                ids.append(self._ids[part])
            elif part:
                ids.extend(self._plain.encode(part, add_special_tokens=False).ids)
        return ids

    def encode_untrusted(self, text: str) -> list[int]:
        """Encodes text of external origin, without parsing any added token."""
        return self._plain.encode(text, add_special_tokens=False).ids if text else []

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes `ids`; bytes that are not UTF-8 (a truncated character) become U+FFFD."""
        return b"".join(self.token_bytes(id_) for id_ in ids).decode("utf-8", errors="replace")

    def token_bytes(self, id_: int) -> bytes:
        """Returns the bytes of a token. Raises KeyError for an id outside the vocabulary."""
        try:
            return self._bytes[int(id_)]
        except KeyError:
            raise KeyError(f"token id {id_} is not in the vocabulary of {self.vocab_size}") from None

    def id(self, name: str) -> int:
        """Returns the id of the added token `name`, e.g. `<|im_end|>`."""
        if name not in self._ids:
            raise KeyError(f"{name!r} is not an added token; there are {', '.join(self._ids)}")
        return self._ids[name]

    @cached_property
    def added_ids(self) -> dict[str, int]:
        """The id of every added token, by name."""
        return dict(self._ids)

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """The ids that structure a dialogue or an image: all added tokens except `<tool_call>` and `</tool_call>`."""
        return frozenset(id_ for name, id_ in self._ids.items() if name not in TOOL_TOKENS)

    def to_json(self) -> str:
        """Returns the `tokenizer.json` document."""
        return json.dumps(self._document, ensure_ascii=False)

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizer.json` that `from_file` and `transformers` can read."""
        Path(path).write_text(self.to_json(), encoding="utf-8")


def train_bpe(texts: Iterable[str], vocab_size: int, path: str | Path | None = None) -> Tokenizer:
    """Trains a small BPE vocabulary with Qwen's rules; the added tokens follow the learned ones.

    Args:
        texts: training text, without added tokens (`<tool_call>` may occur; it is cut out first).
        vocab_size: size of the complete vocabulary, the 256 bytes and the added tokens included. The result is
            smaller if the texts have no further pair to merge: use its `vocab_size`.
        path: file to write `tokenizer.json` to; None writes nothing.
    """
    if vocab_size < 256 + len(ADDED_TOKENS):
        raise ValueError(f"vocab_size {vocab_size} is below the {256 + len(ADDED_TOKENS)} bytes and added tokens")
    learner = tokenizers.Tokenizer(models.BPE())
    learner.normalizer = normalizers.NFC()
    learner.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(ADDED_TOKENS),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    cut = _splitter(ADDED_TOKENS)
    learner.train_from_iterator((part for text in texts for part in cut.split(text)[::2] if part), trainer)
    model = json.loads(learner.to_str())["model"]
    tokenizer = Tokenizer(_document(model["vocab"], [list(pair) for pair in model["merges"]]))
    if path is not None:
        tokenizer.save(path)
    return tokenizer


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _document(vocabulary: dict[str, int], merges: list[list[str]]) -> dict:
    """Returns a complete `tokenizer.json` document from a vocabulary and its merges in order."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    document = json.loads(tokenizer.to_str())
    document["model"].update(vocab=vocabulary, merges=merges)
    first = 1 + max(vocabulary.values())
    document["added_tokens"] = [
        {
            "id": first + index,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": name in _FLAGGED_SPECIAL,
        }
        for index, name in enumerate(ADDED_TOKENS)
    ]
    return document


def _printable(piece: bytes) -> str:
    return "".join(_BYTE_TO_CHAR[byte] for byte in piece)


def _last_merge(piece: bytes, ranks: dict[bytes, int], limit: int) -> tuple[bytes, bytes]:
    """Returns the pair that merges into `piece` after all merges of ranks below `limit` were applied."""
    parts = [piece[index : index + 1] for index in range(len(piece))]
    while len(parts) > 2:
        rank, index = min((ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
        if rank >= limit:
            break
        parts[index : index + 2] = [parts[index] + parts[index + 1]]
    if len(parts) != 2:
        raise ValueError(f"token {piece!r} of rank {limit} is not a merge of two tokens of lower rank")
    return parts[0], parts[1]
