"""Tests the engine's interface: ends of turns, compiled programs, refused calls.

Catches: a turn that continues after its stop string or its budget, a shape missing from the buckets, an invalid call
without an error.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dv2_jax.engine import StopAutomaton
from dv2_jax.telemetry.recompilation import RecompilationCounter
from tests.engine.small_world import BUCKETS, SMALL, finish_turns, png, roll_out


def test_a_turn_ends_at_the_token_that_completes_a_stop_string(world):
    engine = world.engine()
    ids, images = world.prompt("Say anything.")
    engine.add_sequence("s", 11)
    engine.append("s", ids, images)
    engine.request_turn("s", 40, 1.0)
    free = finish_turns(engine, 1)["s"]
    assert free.finish == "length" and len(free.token_ids) == 40
    # A piece of text from the middle of this turn becomes a stop string: the turn must now end with that token.
    pieces = [world.tokenizer.token_bytes(id_) for id_ in free.token_ids]
    wanted = next(
        (n, text)
        for n in range(12, 38)
        if (text := _decoded(pieces[n - 2 : n + 1]))
        and b"".join(pieces[: n + 1]).count(text.encode()) == 1
        and b"".join(pieces[:n]).count(text.encode()) == 0
    )
    stopping = dataclasses.replace(world, stop=StopAutomaton(world.tokenizer, [wanted[1]], [0]))
    for sizes in ({}, {"decode_tokens": 1}, {"decode_tokens": 64}):
        engine = stopping.engine(**sizes)
        engine.add_sequence("s", 11)
        engine.append("s", ids, images)
        engine.request_turn("s", 40, 1.0)
        output = finish_turns(engine, 1)["s"]
        assert output.finish == "stop"
        assert output.token_ids == free.token_ids[: wanted[0] + 1]


def _decoded(pieces: list[bytes]) -> str | None:
    try:
        return b"".join(pieces).decode()
    except UnicodeDecodeError:
        return None


def test_the_end_of_turn_id_ends_a_turn_and_is_kept(world):
    engine = world.engine()
    ids, images = world.prompt("Say anything.")
    engine.add_sequence("s", 11)
    engine.append("s", ids, images)
    engine.request_turn("s", 20, 1.0)
    free = finish_turns(engine, 1)["s"]
    ending = dataclasses.replace(world, stop=StopAutomaton(world.tokenizer, ["never said"], [free.token_ids[9]]))
    engine = ending.engine()
    engine.add_sequence("s", 11)
    engine.append("s", ids, images)
    engine.request_turn("s", 20, 1.0)
    output = finish_turns(engine, 1)["s"]
    at = free.token_ids.index(free.token_ids[9])
    assert (output.finish, output.token_ids) == ("eos", free.token_ids[: at + 1])


def test_after_warm_up_nothing_is_compiled_whatever_comes(world):
    engine = world.engine(slots=4, prefill_rows=1)
    engine.warmup()
    programs = engine.compiled_programs()
    names = [f"s{i}" for i in range(7)]
    compiled = RecompilationCounter()
    roll_out(world, engine, names, [1.0, 0.0])
    for name in names:
        engine.free_sequence(name)
    engine.set_params({name: value + 0 for name, value in world.params.items()}, 4)
    compiled.reset()  # the additions above
    roll_out(world, engine, names[:2], [0.7])
    assert engine.compiled_programs() == programs and engine.recompilations == 0
    assert not compiled.count
    assert programs == len(engine.buckets.decode) + len(engine.buckets.prefill) + len(BUCKETS) + 1


def test_a_dispatch_ends_when_too_few_rows_go_on(world):
    """Without this, the rows of ended turns are computed until the last row of the dispatch has ended."""

    def row_steps(min_live_rows: float) -> tuple[dict, int]:
        engine = world.engine(decode_tokens=12, slots=4, min_live_rows=min_live_rows)
        for number, name in enumerate("abcd"):
            ids, images = world.prompt("Count.")
            engine.add_sequence(name, number)
            engine.append(name, ids, images)
            engine.request_turn(name, 12 if name == "a" else 3, 1.0)
        outputs = finish_turns(engine, 4)
        return {name: output.token_ids for name, output in outputs.items()}, engine.stats.decode_row_steps

    (tokens, few), (same, many) = row_steps(0.75), row_steps(0.0)
    assert tokens == same
    assert few < many


def test_a_parked_sequence_costs_no_dispatch_and_keeps_its_pages(world):
    engine = world.engine()
    ids, images = world.prompt("Wait for the tool.")
    engine.add_sequence("s", 1)
    engine.append("s", ids, images)
    engine.request_turn("s", 5, 1.0)
    finish_turns(engine, 1)
    before = dataclasses.replace(engine.stats)
    assert [engine.step() for _ in range(5)] == [[]] * 5
    assert engine.stats == before and engine.idle
    assert engine.free_pages < SMALL.pages
    engine.free_sequence("s")
    assert engine.free_pages == SMALL.pages


def test_a_sequence_may_leave_while_it_is_sampled(world):
    engine = world.engine()
    for name in "ab":
        ids, images = world.prompt("Leave early.")
        engine.add_sequence(name, 1)
        engine.append(name, ids, images)
        engine.request_turn(name, 30, 1.0)
    for _ in range(6):
        engine.step()
    engine.free_sequence("a")
    assert len(finish_turns(engine, 1)["b"].token_ids) == 30
    engine.free_sequence("b")
    assert engine.free_pages == SMALL.pages


def test_invalid_calls_are_refused_with_the_sequence_id(world):
    engine = world.engine(max_tokens=64, image_cache_tokens=3)
    ids, images = world.prompt("Short.")
    engine.add_sequence("s", 1)
    with pytest.raises(ValueError, match="'s' is open already"):
        engine.add_sequence("s", 2)
    with pytest.raises(ValueError, match="at most 64"):
        engine.append("s", ids * 9)
    with pytest.raises(ValueError, match="placeholders beyond"):
        engine.append("s", [world.config.image_token_id] * 4)
    large = world.encoder.encode_image(png(np.random.default_rng(0), 112, 112))
    with pytest.raises(ValueError, match="image_cache_tokens"):
        engine.append("s", [world.config.image_token_id] * large.tokens, [large])
    engine.append("s", ids)
    with pytest.raises(ValueError, match="room"):
        engine.request_turn("s", 64, 1.0)
    engine.request_turn("s", 3, 1.0)
    with pytest.raises(RuntimeError, match="sampling"):
        engine.append("s", ids)
    with pytest.raises(RuntimeError, match="1 sequences are open"):
        engine.set_params(world.params, 9)


def test_no_dispatch_copies_the_cache(world):
    """Catches temporary memory that grows with the number of pages: donation must update the KV cache in place."""
    working = []
    for pages in (260, 2600):
        engine = world.engine(pages=pages)
        ids, images = world.prompt("Anything", 1)
        for name in "ab":
            engine.add_sequence(name, 1)
            engine.append(name, ids, images)
            engine.request_turn(name, 2, 1.0)
        finish_turns(engine, 2)
        sizes = {key: made.memory_analysis().temp_size_in_bytes for key, made in engine.executables().items()}
        assert {key[0] for key in sizes} == {"prefill", "decode", "encode", "copy"}
        working.append(sizes)
    assert working[0] == working[1]
