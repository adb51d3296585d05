"""Tests the pre-training curriculum: its content, and the held-out content that it must not contain."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import numpy as np
import pytest

from dv2_jax.config import Config
from dv2_jax.toy import pretraining
from dv2_jax.toy.pretraining import Curriculum
from dv2_jax.toy.tasks import drawing, facts, lookup

PHASES = (  # every kind of document is already frequent among the first examples
    (30, {"gallery": 1.0, "plain_chat": 1.0}),
    (None, {name: 1.0 for _, shares in pretraining.PHASES for name in shares}),
)


def documents(prompt_encoder, seed: int, count: int) -> list:
    return list(itertools.islice(Curriculum(prompt_encoder.chat, Config().agent, seed, PHASES), count))


@pytest.fixture(scope="module")
def examples(prompt_encoder):
    return documents(prompt_encoder, 0, 400)


@pytest.fixture(scope="module")
def texts(examples, prompt_encoder):
    return [prompt_encoder.tokenizer.decode(example.token_ids) for example in examples]


def trained(example, prompt_encoder) -> str:
    pairs = zip(example.token_ids, example.loss_weight, strict=True)
    return prompt_encoder.tokenizer.decode(int(id_) for id_, weight in pairs if weight > 0)


def test_the_curriculum_is_a_function_of_its_seed(prompt_encoder):
    def flat(seed):
        return [
            (list(e.token_ids), list(e.loss_weight), [image.digest for image in e.images])
            for e in documents(prompt_encoder, seed, 60)
        ]

    assert flat(1) == flat(1) != flat(2)


def test_both_phases_know_every_kind_of_document_that_they_name():
    """Catches a misnamed kind, which would otherwise fail after hours, at the start of the second phase."""
    for _, shares in pretraining.PHASES:
        assert all(callable(getattr(Curriculum, f"_{name}", None)) for name in shares)
        assert sum(shares.values()) == pytest.approx(1.0)
    assert [count is None for count, _ in pretraining.PHASES] == [False, True]


def test_no_document_holds_a_dialogue_with_a_tool(examples, texts, prompt_encoder):
    """Catches trained tool calls and observations; only the system prompt may contain the tags."""
    tags = re.compile(r"</?(?:code|tool_call|tool_response)>|Code execution result|Web Results|image_search")
    assert not [text for example in examples for text in tags.findall(trained(example, prompt_encoder))]
    assert not [text for text in texts if "tool_response" in text or "Code execution result" in text]
    assert max(text.count("<|im_start|>assistant") for text in texts) == 1


def test_no_document_asks_for_a_fact_about_a_held_out_entity(texts):
    held_out = {fact.entity for fact in facts.facts_of("eval")}
    everything = "\n".join(texts)
    for fact in facts.facts_of("eval"):
        assert fact.sentence not in everything
        assert f"{fact.attribute} of {fact.entity}" not in everything.lower()
    asked = re.findall(r"(?:What is|Tell me) the [a-z ]+? of ([A-Z][\w ]+?)[?.]\n", everything)
    assert asked and not held_out & set(asked)


def test_real_facts_of_the_training_split_do_occur(texts):
    """Ensures that the test above does not pass only because no document states a fact."""
    sentences = {fact.sentence for fact in facts.facts_of("train")}
    stated = Counter(
        sentence for text in texts for sentence in re.findall(r"The [^.\n]+ of [^.\n]+ is [^.\n]+\.", text)
    )
    assert sum(count for sentence, count in stated.items() if sentence in sentences) >= 20


def test_questions_are_worded_as_those_that_are_asked_later(texts):
    heads = [phrase.split("{attribute}")[0] for phrase in lookup.PHRASES if phrase.startswith(("What", "Tell"))]
    assert all(any(head in text for text in texts) for head in heads)


@pytest.mark.parametrize("kind", ["tight", "wide", "plate"])
def test_captions_are_true_and_every_digit_belongs_to_the_training_split(kind):
    """Searches scikit-learn's digits for the nearest one, at every offset from the center that pasting allows."""
    images = drawing.digits()[0].astype(np.float32)
    rng = np.random.default_rng(5)
    for _ in range(12):
        image, caption = pretraining.draw_captioned_image(rng, kind)
        side = int(image.width * 0.8) if kind == "plate" else drawing.DIGIT
        reach = range(1) if kind == "plate" else range(-2, 3)
        edge = (image.width - side) // 2
        boxes = [(edge + dx, edge + dy, edge + dx + side, edge + dy + side) for dx in reach for dy in reach]
        seen = np.stack([np.asarray(image.crop(box).convert("L").resize((8, 8), 4), np.float32) for box in boxes])
        distance = ((images[None] - seen[:, None]) ** 2).sum((2, 3)).min(0)
        found = int(distance.argmin())
        assert str(drawing.digits()[1][found]) == caption.split()[0]
        assert found in drawing.digit_indices("train")


def test_images_are_reused_in_other_documents(prompt_encoder, monkeypatch):
    """Catches a pool that is never reused: an image seen once cannot be distinguished from noise."""
    monkeypatch.setattr(pretraining, "GALLERY_POOL", 8)
    phases = ((None, {"gallery": 1.0}),)
    shown = Counter(
        image.digest
        for example in itertools.islice(Curriculum(prompt_encoder.chat, Config().agent, 0, phases), 40)
        for image in example.images
    )
    assert max(shown.values()) >= 5
