"""Invariant 2: on the stored ids, the engine's log-probs equal those of one full forward pass.

Catches: a wrong M-RoPE position after an image or an appended observation, a key or value written to the wrong page, a
prefix that is too short or too long, swapped image embeddings, a temperature or forbidden id applied on one side only.
"""

from __future__ import annotations

import numpy as np

from tests.engine.small_world import SMALL, finish_turns, roll_out


def gaps(world, rows, temperatures):
    for number, (ids, images, mask, logprobs) in enumerate(rows.values()):
        full = world.full_logprobs(ids, images, temperatures[number % len(temperatures)])
        sampled = np.array(mask, bool)
        yield np.array(logprobs)[sampled] - full[sampled]


def test_logprobs_of_multi_turn_sequences_with_images_equal_those_of_a_full_forward_pass(world):
    engine, temperatures = world.engine(), [1.0, 0.7, 1.3]
    names = [f"s{i}" for i in range(7)]
    rows = roll_out(world, engine, names, temperatures)
    assert sum(len(images) for _, images, _, _ in rows.values()) > 12
    differences = np.concatenate(list(gaps(world, rows, temperatures)))
    assert len(differences) > 100
    assert np.abs(differences).max() <= 1e-4
    assert abs(differences.mean()) <= 1e-6
    for name in names:
        engine.free_sequence(name)
    assert engine.free_pages == SMALL.pages


def test_the_samples_of_a_group_share_its_prompt_and_stay_exact(world):
    engine = world.engine()
    ids, images = world.prompt("One question, many samples: how many red squares are there? " * 2, 2)
    names = [f"sample {i}" for i in range(6)]
    for number, name in enumerate(names):
        engine.add_sequence(name, number)
        engine.append(name, ids, images)
        engine.request_turn(name, 12, 1.0)
    outputs = finish_turns(engine, len(names))
    assert engine.stats.prefilled_tokens == len(ids) - 1, "the prompt is computed once"
    assert engine.stats.shared_tokens == 5 * (len(ids) - 1)
    assert engine.stats.encoded_images == 2
    assert len({tuple(output.token_ids) for output in outputs.values()}) > 1, "the keys differ, the samples should"
    for output in outputs.values():
        full = world.full_logprobs(ids + output.token_ids, images, 1.0)[len(ids) :]
        np.testing.assert_allclose(output.logprobs, full, atol=1e-4)


def test_a_prompt_is_not_shared_over_a_change_of_weights(world):
    engine = world.engine()
    ids, images = world.prompt("The same words under other weights.", 1)
    for version, scale in ((4, 1.0), (5, 1.1)):
        params = {name: value * scale if "kernel" in name else value for name, value in world.params.items()}
        engine.set_params(params, version)
        engine.add_sequence("s", 1)
        engine.append("s", ids, images)
        engine.request_turn("s", 10, 1.0)
        output = finish_turns(engine, 1)["s"]
        assert output.version == version
        engine.free_sequence("s")
        kept, world.params = world.params, params
        full = world.full_logprobs(ids + output.token_ids, images, 1.0)[len(ids) :]
        world.params = kept
        np.testing.assert_allclose(output.logprobs, full, atol=1e-4)
