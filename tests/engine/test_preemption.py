"""Invariants 1 to 4 hold when pages run out: sequences are preempted, and computed again from their ids.

Catches: a deadlock, a page that leaks or is read after it was freed, a preempted sequence that never comes back or samples other
tokens, a parked sequence for which others wait, a program that is compiled for a resumed sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from dv2_jax.engine import Engine
from tests.engine.small_world import finish_turns, roll_out

NAMES = [f"s{i}" for i in range(5)]
VOCAB = 50


def tokens(rows):
    return {name: ids for name, (ids, *_) in rows.items()}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_preempted_sequences_sample_what_they_sample_undisturbed(world, temperature):
    expected = tokens(roll_out(world, world.engine(), NAMES, [temperature]))
    engine = world.engine(pages=30, page_allocation="on_demand")  # one sequence of maximum length has 25 pages
    engine.warmup()
    found = roll_out(world, engine, NAMES, [temperature])
    assert tokens(found) == expected
    assert engine.stats.preemptions > 3 and engine.stats.recomputed_tokens > 100
    assert engine.recompilations == 0
    for name in NAMES:
        engine.free_sequence(name)
    assert engine.free_pages == 30


def test_logprobs_of_a_preempted_sequence_are_those_of_the_trainer(world):
    engine = world.engine(pages=30, page_allocation="on_demand")
    rows = roll_out(world, engine, NAMES, [1.0])
    assert engine.stats.preemptions > 3
    for ids, images, mask, logprobs in rows.values():
        wanted = world.full_logprobs(ids, images, 1.0)
        difference = np.abs(np.array(logprobs) - wanted)[np.array(mask, bool)]
        assert difference.max() < 2e-5


def test_more_sequences_are_admitted_than_have_reserved_pages(world):
    """Catches admission by maximum length: 80 pages hold three sequences of maximum length."""

    def admitted(**sizes) -> int:
        engine = world.engine(pages=80, **sizes)
        for number in range(9):
            ids, _ = world.prompt(f"Question {number}")
            engine.add_sequence(str(number), number)
            engine.append(str(number), ids)
            engine.request_turn(str(number), 4, 1.0)
        engine.step()
        waiting = engine.waiting
        finish_turns(engine, 9, release=True)
        return 9 - waiting

    assert admitted() == 3 and admitted(page_allocation="on_demand") == 9


def test_the_watermark_is_checked(world):
    with pytest.raises(ValueError, match=r"engine\.page_watermark is 1\.5; it must be"):
        world.engine(page_allocation="on_demand", page_watermark=1.5)


# A model of the device: a slot holds the token that was written to it, and the next token is a hash of all tokens that are
# read through the page table. A page that is lost, stale or of another sequence therefore changes what is sampled.


def next_token(ids: list[int]) -> int:
    value = 0
    for token in ids:
        value = (value * 1_000_003 + token + 1) % (2**31 - 1)
    return value % VOCAB


@dataclass
class ModelDevice:
    """Stands for the dispatcher."""

    page_size: int
    rng: np.random.Generator
    params: object = "weights"
    content: dict[int, int] = field(default_factory=dict)
    executables: object = None

    def cached(self, table, count: int) -> list[int]:
        return [
            self.content[int(table[i // self.page_size]) * self.page_size + i % self.page_size] for i in range(count)
        ]

    def copy_pages(self, copies) -> None:
        for pairs in copies:
            for source, target in pairs:
                for offset in range(self.page_size):
                    place = source * self.page_size + offset
                    if place in self.content:
                        self.content[target * self.page_size + offset] = self.content[place]

    def prefill(self, batch) -> None:
        for row, slots in enumerate(batch.slots):
            self.cached(batch.page_table[row], int(batch.cached[row]))  # what attention reads must be there
            for token, slot in zip(batch.token_ids[row], slots, strict=True):
                if slot < self.pad_slot:
                    self.content[int(slot)] = int(token)

    def decode(self, batch, min_live: int = 1):
        rows, steps = batch.slots.shape
        sampled, counts = np.full((rows, steps), -1), np.zeros(rows, int)
        limit = int(self.rng.integers(1, steps + 1))  # the dispatch may end early
        for row in range(rows):
            if not batch.budget[row]:
                continue
            ids = [*self.cached(batch.page_table[row], int(batch.cached[row])), int(batch.token[row])]
            for step in range(min(limit, int(batch.budget[row]))):
                self.content[int(batch.slots[row, step])] = ids[-1]
                ids.append(next_token(ids))
                sampled[row, step] = ids[-1]
                counts[row] += 1
        zeros = np.zeros((rows, steps))
        return SimpleNamespace(tokens=sampled, logprobs=zeros, count=counts, state=np.zeros(rows, int))


class Caller:
    """Plays the rollouts of one sequence: turns, tools that take some steps, observations; it may give up at any time."""

    def __init__(self, name: str, prompt: list[int], rng: np.random.Generator, max_tokens: int):
        self.name, self.rng, self.max_tokens = name, rng, max_tokens
        self.ids, self.turns, self.delay, self.wanted = list(prompt), int(rng.integers(1, 5)), 0, 0
        self.gives_up = rng.random() < 0.15

    def start(self, engine: Engine) -> None:
        engine.add_sequence(self.name, 0)
        engine.append(self.name, self.ids)
        self.request(engine)

    def request(self, engine: Engine) -> None:
        self.wanted = int(self.rng.integers(1, 1 + min(12, self.max_tokens - len(self.ids))))
        engine.request_turn(self.name, self.wanted, 0.0)

    def finished(self, output) -> None:
        for token in output.token_ids:
            assert token == next_token(self.ids), f"{self.name} has read other tokens than its own"
            self.ids.append(token)
        assert len(output.token_ids) == self.wanted
        self.turns, self.delay = self.turns - 1, int(self.rng.integers(1, 30))

    def waits(self, engine: Engine) -> bool:
        """Advances the tool by a step; returns False once the sequence has ended."""
        if self.delay == 0:  # it is sampled
            ended = self.gives_up and self.rng.random() < 0.02
        else:
            self.delay -= 1
            observation = [int(token) for token in self.rng.integers(0, VOCAB, self.rng.integers(1, 9))]
            ended = self.turns <= 0 or len(self.ids) + len(observation) >= self.max_tokens
            if not ended and self.delay == 0:
                engine.append(self.name, observation)
                self.ids += observation
                self.request(engine)
        if ended:
            engine.free_sequence(self.name)
        return not ended


PREEMPTIONS: list[int] = []


@pytest.mark.parametrize("seed", range(40))
def test_random_schedules_in_tiny_memories_end_without_deadlock_or_leak(world, seed):
    rng = np.random.default_rng(seed)
    page_size, max_tokens = int(rng.integers(2, 9)), 48
    least = -(-max_tokens // page_size)
    pages = least + int(rng.integers(0, 2 * least))
    engine = world.engine(
        max_tokens, page_size=page_size, pages=pages, page_allocation="on_demand", slots=int(rng.integers(2, 9)),
        prefill_rows=int(rng.integers(1, 5)), prefill_tokens=int(rng.integers(3, 17)), decode_tokens=int(rng.integers(1, 9)),
        page_watermark=float(rng.choice([0.0, 0.05, 0.3])),
    )  # fmt: skip
    device = ModelDevice(page_size, rng)
    device.pad_slot = pages * page_size
    engine._dispatcher = device
    prompts = [rng.integers(0, VOCAB, size).tolist() for size in (1, 5, 9, 17, 24)]
    left = [Caller(str(number), prompts[rng.integers(len(prompts))], rng, max_tokens) for number in range(24)]
    running: list[Caller] = []
    for _ in range(6_000):
        if left and rng.random() < 0.4:
            running.append(left.pop())
            running[-1].start(engine)
        by_name = {caller.name: caller for caller in running}
        for output in engine.step():
            by_name[output.seq_id].finished(output)
        running = [caller for caller in running if caller.waits(engine)]
        if not left and not running:
            break
    assert not left and not running, f"{len(left) + len(running)} sequences have not ended"
    table = engine._kv_managers[0].page_table
    assert engine.free_pages == pages and table.reserved == 0 and engine.waiting == 0
    assert all(page.ref_count == 0 for page in table.pages)
    PREEMPTIONS.append(engine.stats.preemptions)


def test_the_random_schedules_have_preempted():
    """Catches memories that are large enough for everything. Runs after the schedules, in the same process."""
    if PREEMPTIONS:  # else they were not selected
        assert sum(PREEMPTIONS) > 5 * len(PREEMPTIONS)
