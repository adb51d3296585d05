"""Invariant 3: a sample depends on its own ids and key only, not on engine sizes or on the other sequences.

Catches: a random number that depends on the row or dispatch, a stop state or budget that leaks between rows, attention
to another sequence's page or to stale slots, a wrong prefill chunk boundary.
"""

from __future__ import annotations

import pytest

from tests.engine.small_world import finish_turns, roll_out

NAMES = [f"s{i}" for i in range(5)]
# Few combinations that change many sizes at once, because each compiles its own programs.
SIZES = {
    "few slots, one token per dispatch, large pages, long prefill chunks": {
        "slots": 2, "decode_tokens": 1, "page_size": 32, "pages": 40, "prefill_tokens": 96, "prefill_rows": 8,
        "min_live_rows": 0.0,
    },
    "many tokens per dispatch, small odd pages, short prefill chunks, an image cache that must evict": {
        "decode_tokens": 17, "page_size": 11, "pages": 100, "prefill_tokens": 5, "prefill_rows": 2, "image_cache_tokens": 20,
        "min_live_rows": 1.0, "shape_tolerance": 1.0,
    },
}  # fmt: skip


def tokens(rows):
    return {name: ids for name, (ids, *_) in rows.items()}


@pytest.fixture(scope="module")
def reference(world):
    return {temperature: tokens(roll_out(world, world.engine(), NAMES, [temperature])) for temperature in (0.0, 1.0)}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_greedy_and_sampled_tokens_do_not_depend_on_the_sizes_of_the_engine(world, reference, sizes):
    for temperature, expected in reference.items():
        assert tokens(roll_out(world, world.engine(**sizes), NAMES, [temperature])) == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_sequence_alone_samples_what_it_samples_in_company(world, temperature):
    def sample(company: int, **sizes) -> list[int]:
        engine = world.engine(**sizes)
        for number in range(company):
            ids, images = world.prompt(f"Neighbor {number} says " + "so " * number, number % 2, seed=number)
            engine.add_sequence(f"n{number}", number)
            engine.append(f"n{number}", ids, images)
            engine.request_turn(f"n{number}", 3 + number, 1.0)
        ids, images = world.prompt("What do you see?", 1, seed=99)
        engine.add_sequence("me", 77)
        engine.append("me", ids, images)
        engine.request_turn("me", 25, temperature)
        return finish_turns(engine, company + 1, release=True)["me"].token_ids

    alone = sample(0)
    assert sample(9) == alone
    assert sample(9, pages=80) == alone, "with pages for three sequences, in a queue"


def test_pages_for_three_serve_nine_in_turn_and_come_back(world):
    engine = world.engine(pages=80)
    for number in range(9):
        ids, images = world.prompt(f"Question {number}", number % 2)
        engine.add_sequence(str(number), number)
        engine.append(str(number), ids, images)
        engine.request_turn(str(number), 4, 1.0)
    left = {str(number) for number in range(9)}
    for _ in range(200):
        for output in engine.step():
            engine.free_sequence(output.seq_id)
            left.discard(output.seq_id)
    assert not left
    assert engine.free_pages == 80
