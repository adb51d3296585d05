"""Searches a corpus with tantivy: BM25 over words joined by OR, with boosted titles.

Documents and queries are folded alike (`indexing.folding`). Scripts without spaces are indexed by character, and a
query in them is a disjunction of phrases of two characters, as in Lucene's CJKAnalyzer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path

import tantivy

from tools_service.common.index_schema import TEXT_INDEX_SCHEMA
from tools_service.search.indexing.corpora import is_corpus, text_rows
from tools_service.search.indexing.folding import CHARACTER_SCRIPTS, fold, fold_with_offsets, query_pieces
from tools_service.search.provider import BadQuery, SearchHit

_TITLE_BOOST = 2.0
_MAX_WORDS = 64
_SNIPPET_CHARS = 500
_META = "tools_index.json"
_STORED = ("title", "text", "url", "date")  # as written, UTF-8
_SEARCHED = {"title_folded": _TITLE_BOOST, "text_folded": 1.0}  # field → weight
_ANALYZER = "folded"
_MAX_TOKEN_BYTES = 120


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    for name in _STORED:
        builder.add_bytes_field(name, stored=True, indexed=False)
    for name in _SEARCHED:
        builder.add_text_field(name, stored=False, tokenizer_name=_ANALYZER)
    return builder.build()


def _analyzer() -> tantivy.TextAnalyzer:
    """Splits folded text into words, which are stemmed as English, and characters of scripts without spaces."""
    word = f"[[\\p{{Alphabetic}}\\p{{M}}\\p{{N}}]--[{CHARACTER_SCRIPTS}]]+"
    tokenizer = tantivy.Tokenizer.regex(f"[{CHARACTER_SCRIPTS}]|{word}")
    return (
        tantivy.TextAnalyzerBuilder(tokenizer)
        .filter(tantivy.Filter.remove_long(_MAX_TOKEN_BYTES))
        .filter(tantivy.Filter.lowercase())
        .filter(tantivy.Filter.stemmer("english"))
        .build()
    )


def build_index(rows: Iterable[dict], folder: str | None) -> tantivy.Index:
    """Indexes rows with "title", "text" and optionally "url" and "date", into a folder or in memory."""
    index = tantivy.Index(_schema(), path=folder) if folder else tantivy.Index(_schema())
    index.register_tokenizer(_ANALYZER, _analyzer())
    writer = index.writer(heap_size=64_000_000, num_threads=1)
    try:
        count = 0
        for count, row in enumerate(rows, start=1):
            if not isinstance(row.get("title"), str) or not isinstance(row.get("text"), str):
                raise ValueError(
                    f'row {count} of the corpus needs "title" and "text", both strings; it has {sorted(row)}'
                )
            stored = {name: [str(row.get(name) or "").encode("utf-8", "replace")] for name in _STORED}
            folded = {"title_folded": [fold(row["title"])], "text_folded": [fold(row["text"])]}
            writer.add_document(tantivy.Document(**stored, **folded))
        writer.commit()
        writer.wait_merging_threads()
    finally:
        del writer  # ends its threads, which would otherwise write to a folder that a failed build removes
    index.reload()
    if folder:
        meta = {"kind": "text", "documents": count, "schema": TEXT_INDEX_SCHEMA}
        (Path(folder) / _META).write_text(json.dumps(meta))
    return index


def _check_schema(path: str) -> None:
    """Raises ValueError unless `path` is the folder of a text index that this version can search."""
    try:
        meta = json.loads((Path(path) / _META).read_text())
    except (OSError, ValueError):
        meta = {}
    if meta.get("kind") != "text":
        raise ValueError(
            f"{path} is neither a text index (python -m tools_service.cli.index text) nor a corpus (JSONL, Parquet, package:NAME)"
        )
    schema = meta.get("schema", 1)  # version 1 did not record it
    if schema != TEXT_INDEX_SCHEMA:
        raise ValueError(
            f"{path} has text index schema {schema}, this version reads {TEXT_INDEX_SCHEMA}: remove the folder and "
            f"rebuild it with `python -m tools_service.cli.index text CORPUS --output {path}`"
        )


class TextIndex:
    """The embedded text provider: an index searched in this process."""

    def __init__(self, index: tantivy.Index):
        self._index = index
        index.reload()
        self.documents = index.searcher().num_docs
        self.name = f"text: tantivy, {self.documents} documents"

    @classmethod
    def open(cls, path: str) -> TextIndex:
        """Opens an index folder, or indexes a corpus (`corpora.read_rows`) in memory.

        Raises:
            ValueError: if `path` is neither, or an index of another schema version.
        """
        if is_corpus(path):
            return cls(build_index(text_rows(path), None))
        _check_schema(path)
        index = tantivy.Index.open(path)
        index.register_tokenizer(_ANALYZER, _analyzer())
        return cls(index)

    async def search(self, query: str, k: int) -> list[SearchHit]:
        return await asyncio.to_thread(self.search_sync, query, k)

    def search_sync(self, query: str, k: int) -> list[SearchHit]:
        """Searches in the calling thread; `search` runs it in a worker thread."""
        pieces = query_pieces(query)[:_MAX_WORDS]
        if not pieces:
            raise BadQuery("the query holds no word")
        # Quotes: the pieces contain no operator, and one of several tokens becomes a phrase.
        parsed = self._index.parse_query(" ".join(f'"{piece}"' for piece in pieces), list(_SEARCHED), _SEARCHED)
        searcher = self._index.searcher()
        snippets = tantivy.SnippetGenerator.create(searcher, parsed, self._index.schema, "text_folded")
        items = []
        for score, address in searcher.search(parsed, limit=k).hits:
            document = searcher.doc(address)
            title, text, url, date = (document.get_all(name)[0].decode() for name in _STORED)
            items.append(SearchHit(title, url, _snippet(text, snippets), date, score=score))
        return items


def _snippet(text: str, snippets: tantivy.SnippetGenerator) -> str:
    """Returns about `_SNIPPET_CHARS` characters of a text around the words asked for."""
    if len(text) <= _SNIPPET_CHARS:
        return text
    folded, offsets = fold_with_offsets(text)
    snippets.set_max_num_chars(_SNIPPET_CHARS * len(folded.encode()) // max(len(folded), 1))  # tantivy counts bytes
    fragment = snippets.snippet_from_doc(tantivy.Document(text_folded=[folded])).fragment()
    start = folded.find(fragment)
    return text[offsets[start] : offsets[start + len(fragment)]] or text[:_SNIPPET_CHARS]
