"""``python -m tools_service.cli.recordings``: look into recorded search answers, and put recordings together.

show FILE                   what it holds, by provider
export FILE OUTPUT.jsonl    one answer a line, sorted: the same answers make the same file
merge FILE SOURCE...        adds answers of other recordings or exports; where both have one, the later recorded stays
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tools_service.search.recording_store import Answer, Recordings

_KEYS = ("provider", "variant", "query", "k", "items", "recorded_at")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools_service.cli.recordings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    show = verbs.add_parser("show", help="what a recording holds")
    show.add_argument("file")
    export = verbs.add_parser("export", help="as JSONL")
    export.add_argument("file")
    export.add_argument("output")
    merge = verbs.add_parser("merge", help="add answers of other recordings or exports")
    merge.add_argument("file", help="recording that grows; made where it does not exist")
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
    answers = list(Recordings(path, read_only=True))
    for (provider, variant), count in sorted(Counter((a.provider, a.variant) for a in answers).items()):
        print(f"{provider} ({variant}): {count} answers")
    print(f"{len(answers)} answers, {sum(len(a.items) for a in answers)} results")


def _export(path: str, output: str) -> int:
    lines = []
    for answer in Recordings(path, read_only=True):
        row = dict(zip(_KEYS, answer.row(), strict=True))
        lines.append(json.dumps(row | {"items": json.loads(row["items"])}, ensure_ascii=False, sort_keys=True))
    Path(output).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def _merge(path: str, sources: list[str]) -> int:
    target = Recordings(path)
    changed = 0
    for source in sources:
        for answer in _read(source):
            have = target.get(answer.provider, answer.variant, answer.query)
            if have is None or have.recorded_at < answer.recorded_at:
                target.put(answer)
                changed += 1
    return changed


def _read(source: str) -> Iterator[Answer]:
    if not source.endswith(".jsonl"):
        yield from Recordings(source, read_only=True)
        return
    with open(source, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
                yield Answer.of(tuple(json.dumps(row[key]) if key == "items" else row[key] for key in _KEYS))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{source}, line {number} is no recorded answer: {type(error).__name__}: {error}"
                ) from None


if __name__ == "__main__":
    main()
