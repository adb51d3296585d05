"""Incremental decoding with stop strings, against decoding everything at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dv2_jax.serving.text_stream import TextStream

HIDDEN = 999  # an id without text


def stream(stop=(), **options) -> TextStream:
    """Returns a stream whose token ids are bytes, or pairs of bytes from 256 on."""
    return TextStream(lambda id_: bytes([id_]) if id_ < 256 else b"ab", stop, hidden={HIDDEN}, **options)


def cut(text: str, stops: list[str], keep: bool) -> str:
    found = [(text.find(stop), stop) for stop in stops if stop in text]
    if not found:
        return text
    # Of the stop strings that are complete first, the one that starts first.
    end = min(start + len(stop) for start, stop in found)
    start, stop = min((start, stop) for start, stop in found if start + len(stop) == end)
    return text[: start + len(stop) * keep]


TEXT = st.text("ab<é>", max_size=12)


@given(TEXT, st.lists(st.text("ab<é>", min_size=1, max_size=3), max_size=3), st.booleans(), st.data())
def test_streamed_text_equals_the_text_before_the_first_stop_string(text, stops, keep, data):
    """Catches a stop string that is missed across tokens, and text of one that was sent before it was complete."""
    ids = list(text.encode())
    splits = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=4)))
    decoder, sent = stream(stops, keep_stop=keep), ""
    for start, end in zip([0, *splits], [*splits, len(ids)], strict=True):
        sent += decoder.push(ids[start:end])
        assert text.startswith(sent), "text of a stop string was sent"
    sent += decoder.finish()
    assert sent == decoder.text == cut(text, stops, keep)
    assert (decoder.stopped_by is None) == (not any(stop in text for stop in stops))


def test_tokens_are_counted_up_to_the_one_that_completes_a_stop_string():
    decoder = stream(["ba"])
    assert decoder.push([256, 256, ord("c")]) == "a"
    assert (decoder.tokens, decoder.stopped_by) == (2, "ba")
    assert decoder.push([ord("d")]) == "" and decoder.tokens == 2


def test_an_incomplete_character_is_held_back_and_then_replaced():
    decoder = stream()
    first, second = "é".encode()
    assert decoder.push([first]) == ""
    assert decoder.push([second, HIDDEN, first]) == "é"
    assert decoder.finish() == "\ufffd"
