"""``python -m tools_service.index text CORPUS.jsonl --output DIR`` and ``... image PICTURES --output DIR``.

A corpus row is ``{"title", "text", "url"?, "date"?}``; a picture row ``{"image": path, "title", "url"?}``
with paths relative to the table. Pictures may also be a folder, whose file names are the titles.
"""

from __future__ import annotations

import argparse
import os
import sys
import time


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools_service.index", description=__doc__)
    parser.add_argument("kind", choices=("text", "image"))
    parser.add_argument("source", help="JSONL file; for images also a folder")
    parser.add_argument("--output", required=True, help="folder to be made; it must not exist or be empty")
    options = parser.parse_args(argv)
    os.makedirs(options.output, exist_ok=True)
    if os.listdir(options.output):
        sys.exit(f"error: {options.output} is not empty")
    started = time.monotonic()
    try:
        if options.kind == "text":
            from tools_service.search import text

            count = text.TextIndex(text.build(text.read_rows(options.source), options.output)).documents
        else:
            from tools_service.search import pictures

            table, rows = pictures.build(pictures.read_pictures(options.source))
            pictures.save(table, rows, options.output)
            count = len(rows)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(
        f"indexed {count} {'documents' if options.kind == 'text' else 'pictures'} into {options.output} in {time.monotonic() - started:.1f} s"
    )


if __name__ == "__main__":
    main()
