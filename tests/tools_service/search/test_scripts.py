"""Tests text search in many scripts: folding, segmentation, snippets, and the schema version of indexes."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
import tantivy
from hypothesis import example, given
from hypothesis import strategies as st

from dv2_jax.rollout import tools_client
from tools_service.cli import index
from tools_service.search.indexing.folding import fold, fold_with_offsets, query_pieces
from tools_service.search.provider import BadQuery
from tools_service.search.providers.text_index import TextIndex, build_index

DOCUMENTS = [
    ("法国", "巴黎是法国的首都，也是法国最大的城市。"),
    ("中国", "北京是中国的首都。法律由国家制定。"),
    ("日本", "東京は日本の首都である。コンピューターとカメラの会社が多い。"),
    ("대한민국", "서울은 대한민국의 수도이다."),
    ("ประเทศไทย", "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย"),
    ("ລາວ", "ວຽງຈັນເປັນນະຄອນຫຼວງຂອງປະເທດລາວ"),
    ("कृत्रिम", "नई दिल्ली भारत की राजधानी है।"),
    ("Pelé", "Edson Arantes do Nascimento, a footballer from Três Corações."),
    ("İstanbul", "A city on the Bosporus, near Diyarbakır Street."),
    ("Straßen", "Die Straße führt nach Łódź und Tromsø, über den Weißensee."),
    ("Flight", "Flight ９８７ leaves at ７ from ＧＡＴＥ Ｃ; half-width ｶﾒﾗ."),
    ("Москва", "Москва́ — столица; ёлка и трёхлитровый."),
    ("القاهرة", "القَاهِرَة عاصمة مصر، سنة ١٩٥٢."),
    ("Athens", "Ο Οδυσσεύς ΉΤΑΝ ΒΑΣΙΛΕΎΣ."),
    ("Café Zoë", "Decomposed: cafe\u0301 Zoe\u0308, co\u00adoperate, ﬁnal ﬂour."),
    ("שלום", "שָׁלוֹם עולם"),
    ("Hà Nội", "Thủ đô của Việt Nam, gần Đà Nẵng."),
]


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> TextIndex:
    folder = tmp_path_factory.mktemp("scripts")
    rows = (json.dumps({"title": title, "text": text}) for title, text in DOCUMENTS)
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    index.main(["text", str(folder / "corpus.jsonl"), "--output", str(folder / "index")])
    return TextIndex.open(str(folder / "index"))


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("法国的首都", "法国"), ("法国的首都是什么？", "法国"), ("中国的首都", "中国"), ("京", "中国|日本"),
        ("東京", "日本"), ("東京tower", "日本"), ("コンピューター", "日本"), ("ｺﾝﾋﾟｭｰﾀｰ", "日本"),
        ("カメラの会社", "日本"), ("서울", "대한민국"), ("수도이다", "대한민국"),
        (unicodedata.normalize("NFD", "서울"), "대한민국"), ("เมืองหลวง", "ประเทศไทย"),
        ("กรุงเทพมหานคร", "ประเทศไทย"), ("ນະຄອນຫຼວງ", "ລາວ"), ("राजधानी", "कृत्रिम"), ("दिल्ली", "कृत्रिम"),
        ("Pele", "Pelé"), ("PELÉ", "Pelé"), ("Tres Coracoes", "Pelé"), ("Istanbul", "İstanbul"),
        ("istanbul", "İstanbul"), ("İSTANBUL", "İstanbul"), ("Diyarbakir", "İstanbul"), ("Strasse", "Straßen"),
        ("STRASSE", "Straßen"), ("Straße", "Straßen"), ("lodz", "Straßen"), ("Tromso", "Straßen"),
        ("Weissensee", "Straßen"), ("flight 987", "Flight"), ("９８７", "Flight"), ("gate c", "Flight"),
        ("елка", "Москва"), ("МОСКВА", "Москва"), ("трехлитровый", "Москва"), ("القاهرة", "القاهرة"),
        ("1952", "القاهرة"), ("οδυσσευς", "Athens"), ("βασιλευς", "Athens"), ("café", "Café Zoë"),
        ("zoe", "Café Zoë"), ("cooperate", "Café Zoë"), ("final flour", "Café Zoë"), ("שלום", "שלום"),
        ("Ha Noi", "Hà Nội"), ("da nang", "Hà Nội"), ("Pel\ud800e", "Pelé"),
    ],
)  # fmt: skip
def test_a_word_is_found_in_every_script_and_with_or_without_accents(documents, query, title):
    """Catches `法国的首都` and `Pele` finding nothing; `京` alone is in two documents."""
    found = [hit.title for hit in documents.search_sync(query, 3)]
    assert found and found[0] in title.split("|"), found


@pytest.mark.parametrize("query", ["大阪", "부산", "เชียงใหม่ฟ", "Pelle", "मुंबई", "国法"])
def test_characters_apart_or_in_another_order_do_not_match_alone(documents, query):
    """Catches an index of single characters: `国法` has two characters of a document, in the other order."""
    found = [hit.title for hit in documents.search_sync(query, 3)]
    assert found == [] or query == "เชียงใหม่ฟ"  # pairs of this Thai word occur in other words


@pytest.mark.parametrize("query", ["。、！", "\ud800", "\u200b", "\u0301", "——"])
def test_a_query_of_signs_alone_is_refused(documents, query):
    with pytest.raises(BadQuery):
        documents.search_sync(query, 2)


@given(st.text())
@example("ΐΌİ\u0345")
@example("\u1112\u1161\u11ab か\u3099 ﷺ ½")
def test_folding_is_stable_and_offsets_lead_back_to_the_text(text):
    """Catches a query folded twice that no longer matches, and a snippet cut at the wrong place."""
    folded, offsets = fold_with_offsets(text)
    assert folded == fold(text)
    assert len(offsets) == len(folded) + 1 and offsets == sorted(offsets) and offsets[-1] == len(text)
    for i, character in enumerate(folded):
        assert character in fold(text[offsets[i] : offsets[i] + 40])
    assert fold(folded) == folded
    "".join(query_pieces(text)).encode()  # raises if a lone surrogate is left


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_folding_of_ascii_is_lower_case(text):
    assert fold(text) == text.lower() and fold_with_offsets(text)[1] == list(range(len(text) + 1))


def test_a_cut_snippet_keeps_the_original_letters_around_the_match():
    """Catches snippets of folded text, of a third of the length for scripts of three bytes, or without the match."""
    filler = "，".join(["这是一些没有关系的文字"] * 150)
    rows = [
        {"title": "long", "text": filler + "。法国的首都是巴黎。" + filler},
        {
            "title": "accents",
            "text": "Füllwörter füllen, Ödland. " * 60 + "Der STRASSENKÖTER Pelé." + " Öde Äcker." * 80,
        },
    ]

    texts = TextIndex(build_index(rows, None))
    (hit,) = texts.search_sync("法国的首都", 1)
    assert "法国的首都是巴黎" in hit.snippet and 400 <= len(hit.snippet) <= 520
    (hit,) = texts.search_sync("strassenkoter pele", 1)
    assert "STRASSENKÖTER Pelé" in hit.snippet and hit.snippet in rows[1]["text"] and len(hit.snippet) <= 520


def reference_search(rows: list[dict], query: str, k: int) -> list[tuple[str, str, float]]:
    """Searches as the index of schema 1 did: tantivy's own English analyzer and snippets, on text as written."""
    builder = tantivy.SchemaBuilder()
    for name in ("title", "text"):
        builder.add_text_field(name, stored=True, tokenizer_name="en_stem")
    built = tantivy.Index(builder.build())
    writer = built.writer(64_000_000, 1)
    for row in rows:
        writer.add_document(tantivy.Document(title=[row["title"]], text=[row["text"]]))
    writer.commit()
    writer.wait_merging_threads()
    built.reload()
    words = dict.fromkeys(query.lower().split())
    parsed = built.parse_query(" ".join(f'"{w}"' for w in words), ["title", "text"], {"title": 2.0, "text": 1.0})
    searcher = built.searcher()
    snippets = tantivy.SnippetGenerator.create(searcher, parsed, built.schema, "text")
    snippets.set_max_num_chars(500)
    found = []
    for score, address in searcher.search(parsed, limit=k).hits:
        document = searcher.doc(address)
        title, text = document.get_first("title"), document.get_first("text")
        cut = text if len(text) <= 500 else snippets.snippet_from_doc(document).fragment() or text[:500]
        found.append((title, cut, score))
    return found


def test_english_queries_rank_and_cut_as_before():
    """Catches a change of scores, order or snippets for English, which the policy's observations consist of."""
    random = np.random.default_rng(3)
    words = (
        "Rivers copper castles running violet the engine's of harbor-side mirror X-ray 3422 snake_case Lanterns".split()
    )
    rows = [
        {"title": " ".join(random.choice(words, size=3)), "text": " ".join(random.choice(words, size=n)) + ". End."}
        for n in random.integers(3, 300, 200)
    ]
    texts = TextIndex(build_index(rows, None))
    for query in ("river", "the copper castle", "running engine lanterns", "3422 violet mirror", "snake_case", "x ray"):
        found = [(hit.title, hit.snippet, hit.score) for hit in texts.search_sync(query, 10)]
        assert found == reference_search(rows, query, 10)


@pytest.mark.parametrize("schema", [None, 1, 99])
def test_an_index_of_another_schema_names_the_command_that_rebuilds_it(tmp_path, schema):
    """Catches an old index that is opened and finds nothing."""
    (tmp_path / "c.jsonl").write_text('{"title": "x", "text": "y"}\n')
    folder = tmp_path / "index"
    index.main(["text", str(tmp_path / "c.jsonl"), "--output", str(folder)])
    meta = json.loads((folder / "tools_index.json").read_text())
    meta.pop("schema")
    (folder / "tools_index.json").write_text(json.dumps(meta | ({"schema": schema} if schema else {})))
    with pytest.raises(ValueError) as error:
        TextIndex.open(str(folder))
    assert f"schema {schema or 1}," in str(error.value) and "\n" not in str(error.value)
    assert f"python -m tools_service.cli.index text CORPUS --output {folder}" in str(error.value)


def test_an_image_index_given_for_text_is_named(tmp_path):
    (tmp_path / "tools_index.json").write_text('{"kind": "image", "pictures": []}')
    with pytest.raises(ValueError, match="is neither a text index"):
        TextIndex.open(str(tmp_path))


def test_the_index_of_the_toy_tasks_has_another_path_for_another_schema(monkeypatch):
    """Catches an index of the toy tasks, kept in the user's cache, that an upgrade can no longer open."""
    tools_client._fingerprint.cache_clear()
    before = tools_client._fingerprint()
    monkeypatch.setattr(tools_client, "TEXT_INDEX_SCHEMA", 99)
    tools_client._fingerprint.cache_clear()
    assert tools_client._fingerprint() != before
    tools_client._fingerprint.cache_clear()
