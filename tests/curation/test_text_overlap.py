"""Tests the search for repeated questions.

Catches: templates that make every question match, a paraphrase by case or punctuation that is missed, a short question that
matches because it occurs in a long one by chance, ids that are lost where texts are equal.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dv2_jax.curation.text_overlap import TemplateSentences, TextOverlapIndex, words

LONG = (
    "In the photograph of the harbor at dusk, how many of the small fishing boats that are moored along the left quay"
    " carry a red lantern at the bow?"
)


def index(**texts: str) -> TextOverlapIndex:
    found = TextOverlapIndex()
    for id_, text in texts.items():
        found.add(id_, text)
    return found


def kinds(found: TextOverlapIndex, text: str) -> dict[str, str]:
    return {match.other: match.kind for match in found.matches(text)}


def test_case_punctuation_and_width_make_no_difference():
    found = index(a=LONG)
    assert kinds(found, LONG.upper().replace(",", " ;")) == {"a": "equal"}
    assert kinds(index(a="What is shown in Figure １２?"), "what is shown in figure 12") == {"a": "equal"}


def test_a_question_inside_a_longer_text_is_covered():
    assert kinds(index(a=LONG), f"You are an agent. Look closely. {LONG} Answer with a number.") == {"a": "covered"}
    middle = " ".join(LONG.split()[3:])
    assert kinds(index(a=LONG), middle)["a"] in ("covered", "similar")


def test_a_reworded_question_is_similar_and_another_one_is_not():
    found = index(a=LONG)
    assert kinds(found, LONG.replace("small fishing boats", "little fishing boats")) == {"a": "similar"}
    assert kinds(found, "How many people stand on the bridge behind the church with the green tower?") == {}


def test_a_short_question_matches_only_an_equal_one():
    found = index(a="What color?")
    assert kinds(found, "What color is the large vehicle next to the station?") == {}
    assert kinds(found, "what color") == {"a": "equal"}


def test_equal_texts_keep_all_ids():
    found = TextOverlapIndex()
    for id_ in ("a", "b"):
        found.add(id_, LONG)
    assert kinds(found, LONG) == {"a": "equal", "b": "equal"}


def test_template_sentences_are_removed_before_comparison():
    suffix = " Please select the correct answer from the options above. Reply with the letter of the option alone."
    topics = [f"{a} {b}" for a in ("red", "blue", "tall", "old", "wet") for b in ("car", "dog", "tree", "sign", "ship")]
    texts = [f"Where is the {topic}?{suffix}" for topic in topics]
    templates = TemplateSentences.fit(texts)
    assert templates.remove(texts[0]) == "Where is the red car?"
    with_templates, without = TextOverlapIndex(templates), TextOverlapIndex()
    for found in (with_templates, without):
        found.add("0", texts[0])
    assert kinds(without, texts[1])["0"] in ("covered", "similar")
    assert kinds(with_templates, texts[1]) == {}


def test_a_repeated_question_is_no_template():
    """Catches: a question that occurs often is removed as a template, and with it every reason to match."""
    templates = TemplateSentences.fit([LONG] * 50)
    assert templates.remove(LONG) == LONG


@given(st.text(min_size=1, max_size=200))
def test_any_text_matches_itself(text):
    found = index(a=text)
    assert [match.other for match in found.matches(text)] == (["a"] if words(text) else [])
