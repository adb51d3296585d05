"""Catches: pages that leak or are freed twice, an admission that later runs out, a prefix taken for another one."""

from __future__ import annotations

import numpy as np
import pytest

from dv2_jax.engine.kv_cache_manager import Memory
from dv2_jax.engine.page_table import OutOfPages, PageTable, prefix_keys
from dv2_jax.engine.sequence_state import Sequence

SIZE, PAGES, LONGEST = 4, 30, 24


def sequence(name: str, prompt: list[int]) -> Sequence:
    return Sequence(name, 0, token_ids=list(prompt))


def compute(memory: Memory, sequences: list[Sequence]) -> None:
    """What the engine does between ticks: copies, then a piece of prompt for whoever need not wait."""
    memory.admit()
    for s in sequences:
        if s.admitted and s.cached < s.prompt_end:
            memory.catch_up(s)
    for s in sequences:
        if s.admitted and s.cached < s.prompt_end and not memory.must_wait(s):
            memory.written(s, s.cached, min(s.cached + 3, s.prompt_end))


def test_random_lives_of_groups_never_run_out_and_give_every_page_back():
    rng = np.random.default_rng(0)
    memory = Memory(PAGES, SIZE, LONGEST)
    alive: list[Sequence] = []
    prompts = [rng.integers(0, 9, size=n).tolist() for n in (1, 4, 5, 9, 13, 18)]
    done = shared = 0
    for step in range(4000):
        if len(alive) < 12:
            s = sequence(str(step), prompts[rng.integers(len(prompts))])
            memory.enqueue(s)
            alive.append(s)
        compute(memory, alive)
        for s in list(alive):
            if s.admitted and s.cached >= s.prompt_end and rng.random() < 0.5:
                memory.grow(s, min(LONGEST, len(s.pages) * SIZE + int(rng.integers(0, 6))))
            # Some leave while they wait, or half way through their prompt, with siblings behind them.
            if rng.random() < (0.2 if s.admitted and s.cached >= s.prompt_end else 0.02):
                memory.release(s)
                alive.remove(s)
                done += 1
        held = [page for s in alive for page in s.pages] + [s.tail_source for s in alive if s.tail_source]
        for page in memory.table.pages:
            assert page.holders == sum(other is page for other in held)
        assert memory.table.free == sum(page.holders == 0 for page in memory.table.pages)
        assert memory.table.free >= memory.table.promised
        shared = memory.shared_tokens
    for s in alive:
        memory.release(s)
    assert memory.table.free == PAGES and memory.table.promised == 0
    assert done > 1000 and shared > 1000


def test_siblings_hold_the_same_full_pages_and_copies_of_the_last():
    memory = Memory(PAGES, SIZE, LONGEST)
    siblings = [sequence(name, list(range(11))) for name in "abc"]
    for s in siblings:
        memory.enqueue(s)
    memory.admit()
    a, b, c = siblings
    assert (
        [page.number for page in a.pages[:2]]
        == [page.number for page in b.pages[:2]]
        == [page.number for page in c.pages[:2]]
    )
    assert len({s.pages[2].number for s in siblings}) == 3
    assert memory.must_wait(b) and not memory.must_wait(a)
    memory.written(a, 0, 10)
    copies = [memory.catch_up(s) for s in (b, c)]
    assert copies == [(a.pages[2].number, s.pages[2].number) for s in (b, c)]
    assert [s.cached for s in siblings] == [10, 10, 10]


def test_a_sibling_computes_the_prompt_itself_when_its_leader_leaves_early():
    memory = Memory(PAGES, SIZE, LONGEST)
    a, b = sequence("a", list(range(11))), sequence("b", list(range(11)))
    memory.enqueue(a)
    memory.enqueue(b)
    memory.admit()
    memory.written(a, 0, 6)
    assert memory.must_wait(b)
    memory.release(a)
    assert memory.catch_up(b) is None
    assert b.cached == 4 and not memory.must_wait(b)


def test_who_has_not_enough_pages_waits_for_its_turn_and_nobody_overtakes():
    memory = Memory(7, SIZE, LONGEST)  # room for one longest sequence of 6 pages
    first, second, third = (sequence(name, [int(name)] * 3) for name in "123")
    for s in (first, second, third):
        memory.enqueue(s)
    memory.admit()
    assert [s.admitted for s in (first, second, third)] == [True, False, False]
    memory.release(first)
    memory.admit()
    assert [s.admitted for s in (second, third)] == [True, False]


def test_new_weights_share_nothing_with_old_ones():
    memory = Memory(PAGES, SIZE, LONGEST)
    old = sequence("old", list(range(9)))
    memory.enqueue(old)
    memory.admit()
    memory.written(old, 0, 8)
    memory.release(old)
    memory.table.forget_all()
    new = sequence("new", list(range(9)))
    memory.enqueue(new)
    memory.admit()
    assert memory.catch_up(new) is None and new.cached == 0


def test_taking_more_than_was_admitted_is_an_error():
    table = PageTable(4, SIZE)
    assert table.admit("s", 1, []) == ([], None)
    table.take("s")
    with pytest.raises(OutOfPages, match="'s'"):
        table.take("s")
    with pytest.raises(ValueError, match="engine.pages 3"):
        Memory(3, SIZE, LONGEST)


def test_a_prefix_is_named_by_its_ids_its_history_and_its_pictures():
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    full, tail = prefix_keys(ids, [], 4)
    assert len(full) == 2 and tail is not None
    assert prefix_keys(ids[:8], [], 4) == (full, None)
    assert prefix_keys([0, *ids[1:]], [], 4)[0][1] != full[1], "an earlier page differs"
    one, other = prefix_keys(ids, [(3, 2, "cat")], 4), prefix_keys(ids, [(3, 2, "dog")], 4)
    assert one[0][0] != other[0][0] != full[0]
    assert prefix_keys(ids, [(2, 3, "cat")], 4)[0][0] != one[0][0], "the same picture begins elsewhere"
