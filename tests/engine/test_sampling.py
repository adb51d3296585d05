"""Catches: samples that do not follow the reported softmax, a sampled forbidden id, a rounding error that samples a
token of probability 0, repeated random numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.engine.sampling import forbidden_ids, sample, token_uniforms

VOCAB = 211  # not a multiple of the block
draw = jax.jit(sample)


def softmax(logits: np.ndarray, temperature: float, forbidden: np.ndarray) -> np.ndarray:
    padded = np.where(forbidden, -np.inf, logits.astype(np.float64) / temperature)
    padded = np.exp(padded - padded.max())
    return padded / padded.sum()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_draws_follow_the_softmax_without_the_forbidden_ids(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=VOCAB).astype(np.float32) * 2
    forbidden = rng.random(VOCAB) < 0.3
    draws = 60_000
    uniforms = token_uniforms(7, jnp.arange(draws, dtype=jnp.uint32), jnp.full(draws, 12))
    rows = jnp.broadcast_to(jnp.asarray(logits), (draws, VOCAB))
    tokens, logprobs = map(np.asarray, draw(rows, uniforms, jnp.full(draws, temperature), jnp.asarray(forbidden)))
    expected = softmax(logits, temperature, forbidden)
    counts = np.bincount(tokens, minlength=VOCAB)
    assert counts[forbidden].sum() == 0
    enough = expected * draws > 20
    rare = ~enough & ~forbidden
    observed = np.append(counts[enough], counts[rare].sum())
    wanted = np.append(expected[enough], expected[rare].sum()) * draws
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    assert scipy.stats.chisquare(observed, wanted).pvalue > 1e-3
    np.testing.assert_allclose(logprobs, np.log(expected[tokens]), atol=2e-5)


def test_the_largest_uniform_never_picks_an_impossible_token():
    logits = np.full((1, VOCAB), -200.0, np.float32)
    logits[0, [3, 40]] = 0.0
    for uniform in (0.0, 0.25, 0.5, np.nextafter(np.float32(0.5), np.float32(1)), np.nextafter(np.float32(1), 0)):
        token, _ = draw(jnp.asarray(logits), jnp.array([uniform]), jnp.ones(1), jnp.zeros(VOCAB, bool))
        assert int(token[0]) in (3, 40)


def test_temperature_zero_is_greedy_and_reports_the_plain_log_prob():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(5, VOCAB)).astype(np.float32)
    forbidden = np.zeros(VOCAB, bool)
    forbidden[logits[0].argmax()] = True
    tokens, logprobs = draw(jnp.asarray(logits), jnp.full(5, 0.9), jnp.zeros(5), jnp.asarray(forbidden))
    allowed = np.where(forbidden, -np.inf, logits)
    assert np.asarray(tokens).tolist() == allowed.argmax(-1).tolist()
    expected = [np.log(softmax(row, 1.0, forbidden)[token]) for row, token in zip(logits, tokens, strict=True)]
    np.testing.assert_allclose(logprobs, expected, atol=1e-5)


def test_a_random_number_depends_on_seed_key_and_position_alone():
    keys, positions = jnp.array([1, 1, 2, 9], jnp.uint32), jnp.array([5, 6, 5, 5])
    numbers = np.asarray(token_uniforms(0, keys, positions))
    assert len(set(numbers.tolist())) == 4
    assert np.asarray(token_uniforms(0, keys[::-1], positions[::-1])).tolist() == numbers[::-1].tolist()
    assert np.asarray(token_uniforms(1, keys, positions))[0] != numbers[0]


def test_control_tokens_and_ids_without_meaning_are_forbidden_but_not_the_end_of_turn():
    tokenizer = Tokenizer.from_package()
    im_end = tokenizer.id("<|im_end|>")
    forbidden = forbidden_ids(tokenizer, tokenizer.vocab_size + 3, frozenset({im_end}))
    assert not forbidden[im_end]
    assert not forbidden[tokenizer.id("</tool_call>")] and not forbidden[tokenizer.id("<tool_call>")]
    assert forbidden[-3:].all()
    for name in ("<|image_pad|>", "<|vision_start|>", "<|im_start|>", "<|endoftext|>", "<|video_pad|>"):
        assert forbidden[tokenizer.id(name)], name
    assert not forbidden[tokenizer.encode("Any text at all, with <code> and digits 0123.")].any()
