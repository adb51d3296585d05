"""Catches: a stop string that is missed because it is split over tokens, inside one token, or overlaps a false start; a
state that leaks into the next turn; a table that is too narrow for a padded vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.engine.stop_strings import START, StopAutomaton

STOPS = ("</code>", "</tool_call>")


class Letters:
    """A vocabulary of given byte strings."""

    def __init__(self, *pieces: bytes):
        self.pieces, self.vocab_size = pieces, len(pieces)

    def token_bytes(self, id_: int) -> bytes:
        return self.pieces[id_]


def walk(automaton: StopAutomaton, token_ids) -> int | None:
    """Returns the index of the token at which the automaton ends the turn."""
    state = START
    for index, token in enumerate(token_ids):
        state = int(automaton.table[state, token])
        if automaton.is_final(state):
            return index
    return None


def searched(pieces: list[bytes], stops) -> int | None:
    """Oracle: searches the text for stop strings after every token."""
    text = b""
    for index, piece in enumerate(pieces):
        text += piece
        if any(stop.encode() in text for stop in stops):
            return index
    return None


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_package()


def test_without_stop_strings_only_the_end_of_turn_id_ends_a_turn(tokenizer):
    end = tokenizer.id("<|im_end|>")
    automaton = StopAutomaton(tokenizer, [], [end])
    text = tokenizer.encode("</code> and </tool_call>")
    assert walk(automaton, text) is None
    assert walk(automaton, [*text, end]) == len(text)
    assert not automaton.is_final(START) and automaton.is_final(automaton.eos)


def test_it_stops_where_searching_the_text_after_every_token_does(tokenizer):
    automaton = StopAutomaton(tokenizer, STOPS, [tokenizer.id("<|im_end|>")])
    # Tokens that occur in stop strings or look similar, so that random texts contain many near misses.
    near = [id_ for id_ in range(256 * 4) if tokenizer.token_bytes(id_) in b"</code></tool_call>"]
    near += tokenizer.encode("</code>\n") + tokenizer.encode("</tool_call>") + tokenizer.encode("</</co</code>")
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(3000):
        token_ids = rng.choice(near, size=24)
        expected = searched([tokenizer.token_bytes(id_) for id_ in token_ids], STOPS)
        assert walk(automaton, token_ids) == expected
        ends += expected is not None
    assert 300 < ends < 2900


def test_overlapping_patterns_restart_inside_a_false_start():
    vocabulary = Letters(b"a", b"b", b"ab", b"ba", b"aab", b"bbab", b"abaab")
    stops = ("aabab", "bbb", "abb")
    automaton = StopAutomaton(vocabulary, stops, [])
    rng = np.random.default_rng(1)
    for _ in range(2000):
        token_ids = rng.integers(0, vocabulary.vocab_size, size=12)
        assert walk(automaton, token_ids) == searched([vocabulary.pieces[id_] for id_ in token_ids], stops)


def test_the_token_that_completes_a_stop_string_may_carry_more_text():
    vocabulary = Letters(b"</co", b"de", b">\n\n", b"x</code>y")
    automaton = StopAutomaton(vocabulary, STOPS, [])
    assert walk(automaton, [0, 1, 2]) == 2
    assert walk(automaton, [1, 3]) == 1


def test_the_end_of_turn_id_ends_a_turn_in_its_own_state(tokenizer):
    im_end = tokenizer.id("<|im_end|>")
    automaton = StopAutomaton(tokenizer, STOPS, [im_end])
    assert automaton.table[START, im_end] == automaton.eos
    stopped = START
    for id_ in tokenizer.encode("</tool_call>"):
        stopped = automaton.table[stopped, id_]
    assert stopped == automaton.stop != automaton.eos


def test_padding_ids_of_a_larger_model_change_no_state(tokenizer):
    automaton = StopAutomaton(tokenizer, STOPS, [])
    padded = automaton.pad_vocab(tokenizer.vocab_size + 7)
    assert padded.shape[1] == tokenizer.vocab_size + 7
    assert (padded[:, -1] == np.arange(len(padded))).all()
    with pytest.raises(ValueError, match="ids"):
        automaton.pad_vocab(tokenizer.vocab_size - 1)
