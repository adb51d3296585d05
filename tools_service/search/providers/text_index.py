"""Searches a corpus with tantivy: BM25 over words joined by OR, with boosted titles."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import tantivy

from tools_service.search.indexing.corpora import is_corpus, text_rows
from tools_service.search.provider import BadQuery, SearchHit

_TITLE_BOOST = 2.0
_MAX_WORDS = 64
_SNIPPET_CHARS = 500
_META = "tools_index.json"
_FIELDS = ("title", "text", "url", "date")


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    for name in ("title", "text"):
        builder.add_text_field(name, stored=True, tokenizer_name="en_stem")
    for name in ("url", "date"):
        builder.add_text_field(name, stored=True, tokenizer_name="raw")
    return builder.build()


def build_index(rows: Iterable[dict], folder: str | None) -> tantivy.Index:
    """Indexes rows with "title", "text" and optionally "url" and "date", into a folder or in memory."""
    index = tantivy.Index(_schema(), path=folder) if folder else tantivy.Index(_schema())
    writer = index.writer(heap_size=64_000_000, num_threads=1)
    count = 0
    for count, row in enumerate(rows, start=1):
        if not isinstance(row.get("title"), str) or not isinstance(row.get("text"), str):
            raise ValueError(f'row {count} of the corpus needs "title" and "text", both strings; it has {sorted(row)}')
        writer.add_document(tantivy.Document(**{name: [str(row.get(name) or "")] for name in _FIELDS}))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    if folder:
        (Path(folder) / _META).write_text(json.dumps({"kind": "text", "documents": count}))
    return index


class TextIndex:
    """The embedded text provider: an index searched in this process."""

    def __init__(self, index: tantivy.Index):
        self._index = index
        index.reload()
        self.documents = index.searcher().num_docs
        self.name = f"text: tantivy, {self.documents} documents"

    @classmethod
    def open(cls, path: str) -> TextIndex:
        """Opens an index folder, or indexes a corpus (`corpora.read_rows`) in memory. Raises ValueError."""
        if is_corpus(path):
            return cls(build_index(text_rows(path), None))
        if not os.path.isfile(os.path.join(path, _META)):
            raise ValueError(
                f"{path} is neither a text index (python -m tools_service.cli.index text) nor a corpus (JSONL, Parquet, package:NAME)"
            )
        return cls(tantivy.Index.open(path))

    async def search(self, query: str, k: int) -> list[SearchHit]:
        return await asyncio.to_thread(self.search_sync, query, k)

    def search_sync(self, query: str, k: int) -> list[SearchHit]:
        """Searches in the calling thread; `search` runs it in a worker thread."""
        words = list(dict.fromkeys(re.findall(r"\w+", query.lower())))[:_MAX_WORDS]
        if not words:
            raise BadQuery("the query holds no word")
        # Lower-case words contain no operator of the query language; quotes prevent further tokenization by its parser.
        parsed = self._index.parse_query(
            " ".join(f'"{word}"' for word in words), ["title", "text"], {"title": _TITLE_BOOST, "text": 1.0}
        )
        searcher = self._index.searcher()
        snippets = tantivy.SnippetGenerator.create(searcher, parsed, self._index.schema, "text")
        snippets.set_max_num_chars(_SNIPPET_CHARS)
        items = []
        for score, address in searcher.search(parsed, limit=k).hits:
            document = searcher.doc(address)
            title, text, url, date = (document.get_first(name) or "" for name in _FIELDS)
            items.append(SearchHit(title, url, _snippet(text, document, snippets), date, score=score))
        return items


def _snippet(text: str, document: tantivy.Document, snippets: tantivy.SnippetGenerator) -> str:
    if len(text) <= _SNIPPET_CHARS:
        return text
    return snippets.snippet_from_doc(document).fragment() or text[:_SNIPPET_CHARS]
