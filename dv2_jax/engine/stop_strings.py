"""Compiles stop strings to an automaton over token ids, so that the device stops at the token that completes one.

The Aho-Corasick automaton of the stop strings reads bytes. A token is a string of bytes, so the state after it is a
function of the state before it: one table lookup per sampled token. A stop string is found across tokens, inside one
token, and when the token that completes it has more bytes after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int

START = 0  # state at the beginning of a turn
FINAL_STATES = 2  # last two rows of a table: stop string completed; end-of-turn id sampled


class ByteVocabulary(Protocol):
    """The part of a tokenizer that is needed here."""

    vocab_size: int

    def token_bytes(self, id_: int) -> bytes: ...


class StopAutomaton:
    """Deterministic automaton: `table[state, token]` is the next state; the last two states are final.

    Attributes:
        table: Q states (one per distinct proper prefix of a stop string, plus the two final ones) by V tokens.
        stop: state of a turn that completed a stop string.
        eos: state of a turn that ended with an end-of-turn id.
    """

    table: Int[np.ndarray, "Q V"]

    def __init__(self, tokenizer: ByteVocabulary, stop_strings: Sequence[str], eos_ids: Iterable[int]):
        patterns = [text.encode() for text in stop_strings]
        if not all(patterns):
            raise ValueError(f"an empty stop string would stop at once: {list(stop_strings)}")
        bytes_table = _byte_automaton(patterns)
        self.stop, self.eos = len(bytes_table) - 1, len(bytes_table)
        lifted = _token_table(bytes_table, [_bytes_of(tokenizer, id_) for id_ in range(tokenizer.vocab_size)])
        self.table = np.concatenate([lifted, np.full_like(lifted[:1], self.eos)])
        eos_ids = list(eos_ids)
        self.table[: self.stop, eos_ids] = self.eos

    def pad_vocab(self, vocab_size: int) -> Int[np.ndarray, "Q V"]:
        """Pads the table to a model's vocabulary that is larger than the tokenizer's; padding ids keep the state.

        Raises:
            ValueError: if the model has fewer ids than the tokenizer.
        """
        states, known = self.table.shape
        if vocab_size < known:
            raise ValueError(f"the model has {vocab_size} ids, the tokenizer {known}")
        padding = np.repeat(np.arange(states, dtype=self.table.dtype)[:, None], vocab_size - known, axis=1)
        return np.concatenate([self.table, padding], axis=1)

    def is_final(self, state):
        """Returns True where a turn in `state` (int or array) is over."""
        return state >= self.stop


def _bytes_of(tokenizer: ByteVocabulary, id_: int) -> bytes:
    try:
        return tokenizer.token_bytes(id_)
    except KeyError:  # unused ids are never sampled
        return b""


def _byte_automaton(patterns: Sequence[bytes]) -> Int[np.ndarray, "Q 256"]:
    """Builds the Aho-Corasick transitions over bytes; the last state is absorbing: a pattern was completed."""
    prefixes = sorted({b"", *(p[:n] for p in patterns for n in range(len(p)))}, key=lambda p: (len(p), p))
    number = {prefix: index for index, prefix in enumerate(prefixes)}
    final = len(prefixes)
    table = np.full((final + 1, 256), final, np.int16)
    for prefix, state in number.items():
        for byte in range(256):
            read = prefix + bytes([byte])
            if any(read.endswith(pattern) for pattern in patterns):
                continue
            # The longest suffix of the bytes read that is a proper prefix of a pattern.
            table[state, byte] = next(number[read[i:]] for i in range(len(read) + 1) if read[i:] in number)
    return table


def _token_table(byte_table: Int[np.ndarray, "Q 256"], tokens: Sequence[bytes]) -> Int[np.ndarray, "Q V"]:
    """Composes byte transitions to transitions per token, one byte position of all tokens at a time."""
    lengths = np.array([len(token) for token in tokens])
    order = np.argsort(-lengths, kind="stable")
    states = np.repeat(np.arange(len(byte_table), dtype=np.int16)[:, None], len(tokens), axis=1)
    for position in range(int(lengths.max(initial=0))):
        longer = order[: int((lengths > position).sum())]
        column = np.array([tokens[id_][position] for id_ in longer])
        states[:, longer] = byte_table[states[:, longer], column]
    return states
