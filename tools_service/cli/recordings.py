"""`python -m tools_service.cli.recordings`: inspects, exports and merges recorded search answers.

show FILE                   number of answers by provider
export FILE OUTPUT.jsonl    one answer per line, sorted: equal recordings export to equal files
merge FILE SOURCE...        adds answers of other recordings or exports; of two for one query the later stays
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tools_service.search.recording_store import CassetteEntry, CassetteStore

_KEYS = ("provider", "variant", "query", "k", "items", "recorded_at")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools_service.cli.recordings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    show = verbs.add_parser("show", help="number of answers by provider")
    show.add_argument("file")
    export = verbs.add_parser("export", help="as JSONL")
    export.add_argument("file")
    export.add_argument("output")
    merge = verbs.add_parser("merge", help="add answers of other recordings or exports")
    merge.add_argument("file", help="recording to extend; created if missing")
    merge.add_argument("sources", nargs="+", metavar="source", help="recording, or .jsonl made by export")
    options = parser.parse_args(argv)
    try:
        if options.verb == "show":
            _show(options.file)
        elif options.verb == "export":
            print(f"{_export(options.file, options.output)} answers")
        else:
            print(f"{_merge(options.file, options.sources)} answers added or renewed")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _show(path: str) -> None:
    answers = list(CassetteStore(path, read_only=True))
    for (provider, variant), count in sorted(Counter((a.provider, a.variant) for a in answers).items()):
        print(f"{provider} ({variant}): {count} answers")
    print(f"{len(answers)} answers, {sum(len(a.items) for a in answers)} results")


def _export(path: str, output: str) -> int:
    lines = []
    for answer in CassetteStore(path, read_only=True):
        row = dict(zip(_KEYS, answer.to_row(), strict=True))
        lines.append(json.dumps(row | {"items": json.loads(row["items"])}, ensure_ascii=False, sort_keys=True))
    Path(output).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def _merge(path: str, sources: list[str]) -> int:
    target = CassetteStore(path)
    changed = 0
    for source in sources:
        for answer in _read(source):
            existing = target.get(answer.provider, answer.variant, answer.query)
            if existing is None or existing.recorded_at < answer.recorded_at:
                target.replace(answer)
                changed += 1
    return changed


def _read(source: str) -> Iterator[CassetteEntry]:
    if not source.endswith(".jsonl"):
        yield from CassetteStore(source, read_only=True)
        return
    with open(source, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                yield CassetteEntry.from_row(
                    tuple(json.dumps(row[key]) if key == "items" else row[key] for key in _KEYS)
                )
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{source}, line {number} is no recorded answer: {type(error).__name__}: {error}"
                ) from None


if __name__ == "__main__":
    main()
