"""Catches: pages that leak or are freed twice, an admitted sequence that runs out of pages, prefix-key collisions."""

from __future__ import annotations

import numpy as np
import pytest

from dv2_jax.engine.kv_cache_manager import KVCacheManager
from dv2_jax.engine.page_table import OutOfPages, PageTable, prefix_keys
from dv2_jax.engine.sequence_state import SequenceState

SIZE, PAGES, LONGEST = 4, 30, 24


def sequence(name: str, prompt: list[int]) -> SequenceState:
    return SequenceState(name, 0, token_ids=list(prompt))


def compute(manager: KVCacheManager, sequences: list[SequenceState]) -> None:
    """Imitates one engine step: copies partial pages, then prefills a chunk of every sequence that is not blocked."""
    manager.admit()
    for s in sequences:
        if s.admitted and s.cached < s.prompt_end:
            manager.advance_shared_prefix(s)
    for s in sequences:
        if s.admitted and s.cached < s.prompt_end and not manager.blocked_on_shared_prefix(s):
            manager.mark_written(s, s.cached, min(s.cached + 3, s.prompt_end))


def test_random_groups_never_run_out_of_pages_and_free_all_of_them():
    rng = np.random.default_rng(0)
    manager = KVCacheManager(PAGES, SIZE, LONGEST)
    alive: list[SequenceState] = []
    prompts = [rng.integers(0, 9, size=n).tolist() for n in (1, 4, 5, 9, 13, 18)]
    done = shared = 0
    for step in range(4000):
        if len(alive) < 12:
            s = sequence(str(step), prompts[rng.integers(len(prompts))])
            manager.enqueue(s)
            alive.append(s)
        compute(manager, alive)
        for s in list(alive):
            if s.admitted and s.cached >= s.prompt_end and rng.random() < 0.5:
                manager.allocate_pages(s, min(LONGEST, len(s.pages) * SIZE + int(rng.integers(0, 6))))
            # Some are freed while they wait, or during prefill while other samples share their prompt.
            if rng.random() < (0.2 if s.admitted and s.cached >= s.prompt_end else 0.02):
                manager.free_sequence(s)
                alive.remove(s)
                done += 1
        held = [page for s in alive for page in s.pages] + [
            s.copy_on_write_source for s in alive if s.copy_on_write_source
        ]
        for page in manager.page_table.pages:
            assert page.ref_count == sum(other is page for other in held)
        assert manager.page_table.num_free == sum(page.ref_count == 0 for page in manager.page_table.pages)
        assert manager.page_table.num_free >= manager.page_table.reserved
        shared = manager.shared_tokens
    for s in alive:
        manager.free_sequence(s)
    assert manager.page_table.num_free == PAGES and manager.page_table.reserved == 0
    assert done > 1000 and shared > 1000


def test_samples_of_a_group_share_full_pages_and_copy_the_partial_page():
    manager = KVCacheManager(PAGES, SIZE, LONGEST)
    samples = [sequence(name, list(range(11))) for name in "abc"]
    for s in samples:
        manager.enqueue(s)
    manager.admit()
    a, b, c = samples
    assert (
        [page.number for page in a.pages[:2]]
        == [page.number for page in b.pages[:2]]
        == [page.number for page in c.pages[:2]]
    )
    assert len({s.pages[2].number for s in samples}) == 3
    assert manager.blocked_on_shared_prefix(b) and not manager.blocked_on_shared_prefix(a)
    manager.mark_written(a, 0, 10)
    copies = [manager.advance_shared_prefix(s) for s in (b, c)]
    assert copies == [(a.pages[2].number, s.pages[2].number) for s in (b, c)]
    assert [s.cached for s in samples] == [10, 10, 10]


def test_a_sample_prefills_the_prompt_itself_when_the_first_sample_is_freed_early():
    manager = KVCacheManager(PAGES, SIZE, LONGEST)
    a, b = sequence("a", list(range(11))), sequence("b", list(range(11)))
    manager.enqueue(a)
    manager.enqueue(b)
    manager.admit()
    manager.mark_written(a, 0, 6)
    assert manager.blocked_on_shared_prefix(b)
    manager.free_sequence(a)
    assert manager.advance_shared_prefix(b) is None
    assert b.cached == 4 and not manager.blocked_on_shared_prefix(b)


def test_admission_is_first_in_first_out():
    manager = KVCacheManager(7, SIZE, LONGEST)  # room for one sequence of maximum length (6 pages)
    first, second, third = (sequence(name, [int(name)] * 3) for name in "123")
    for s in (first, second, third):
        manager.enqueue(s)
    manager.admit()
    assert [s.admitted for s in (first, second, third)] == [True, False, False]
    manager.free_sequence(first)
    manager.admit()
    assert [s.admitted for s in (second, third)] == [True, False]


def test_new_weights_share_nothing_with_old_ones():
    manager = KVCacheManager(PAGES, SIZE, LONGEST)
    old = sequence("old", list(range(9)))
    manager.enqueue(old)
    manager.admit()
    manager.mark_written(old, 0, 8)
    manager.free_sequence(old)
    manager.page_table.invalidate()
    new = sequence("new", list(range(9)))
    manager.enqueue(new)
    manager.admit()
    assert manager.advance_shared_prefix(new) is None and new.cached == 0


def test_allocating_more_pages_than_reserved_is_an_error():
    table = PageTable(4, SIZE)
    assert table.admit("s", 1, []) == ([], None)
    table.allocate("s")
    with pytest.raises(OutOfPages, match="'s'"):
        table.allocate("s")
    with pytest.raises(ValueError, match="engine.pages 3"):
        KVCacheManager(3, SIZE, LONGEST)


def test_a_prefix_key_depends_on_ids_history_and_images():
    ids = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    full, tail = prefix_keys(ids, [], 4)
    assert len(full) == 2 and tail is not None
    assert prefix_keys(ids[:8], [], 4) == (full, None)
    assert prefix_keys([0, *ids[1:]], [], 4)[0][1] != full[1], "an earlier page differs"
    one, other = prefix_keys(ids, [(3, 2, "cat")], 4), prefix_keys(ids, [(3, 2, "dog")], 4)
    assert one[0][0] != other[0][0] != full[0]
    assert prefix_keys(ids, [(2, 3, "cat")], 4)[0][0] != one[0][0], "the same picture begins elsewhere"
