"""The sources of a curation: the embedded questions, or files of any known form of rows, each with its license."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dv2_jax.config import Config, ConfigError
from dv2_jax.curation.curation_rows import CurationRow, RowForm, Shard
from dv2_jax.curation.mixture import LONG_COT
from dv2_jax.curation.source_form import SourceRow, parse_source_row
from dv2_jax.data.faults import DataReport
from dv2_jax.data.question import DATA_SOURCES
from dv2_jax.data.row_files import SOURCE_ENDINGS
from dv2_jax.data.rows import iter_source, parse_row
from dv2_jax.evaluation.readers.usable_rows import apply_bad_rows
from dv2_jax.toy.tasks import make_questions

EMBEDDED = "embedded"
UNKNOWN_LICENSE = "unknown"


@dataclass(frozen=True)
class Source:
    """A source of rows.

    Attributes:
        path: a file or folder of parquet, jsonl, json or csv files; empty: the embedded questions.
        kind: replaces the data source of its rows; `long_cot`: they are answered by a long chain of thought without tools;
            empty: the data source of each row.
    """

    name: str
    path: str
    license: str
    kind: str = ""

    def rows(self, config: Config, shard: Shard | None = None) -> Iterator[CurationRow]:
        """Yields the usable rows of a shard, by default all, in the order of the source.

        Ids are the source's name and the row's own id. Rows of other shards are neither checked nor converted.

        Raises:
            RowError: a file cannot be read; or, after the last row, rows cannot be used and `data` does not permit that.
        """
        for position, row in self._source_rows(config, shard or Shard()):
            form: RowForm = "question" if row.conversation is None else "trajectory"
            if self.kind == LONG_COT and form == "question":
                form = LONG_COT
            data_source = "reason" if self.kind == LONG_COT else self.kind or row.question.data_source
            question = replace(row.question, id=f"{self.name}/{row.question.id}", data_source=data_source)
            yield CurationRow(question, self.name, self.license, form, row.conversation, row.turns, position)

    def _source_rows(self, config: Config, shard: Shard) -> Iterator[tuple[str, SourceRow]]:
        """Yields the shard's rows with their positions."""
        size = config.curate.size
        if not self.path:
            task = config.task
            questions = make_questions("train", size or task.train_size, task.seed, task.skills)
            for number in range(len(questions)):
                position = f"{self.name}/{number}"
                if shard.has(position):
                    yield position, SourceRow(questions[number])
            return
        report = DataReport(self.path)
        for file, raw in iter_source(self.path, SOURCE_ENDINGS, size or None):
            position = f"{self.name}/{file.name}:{raw.number}"
            if not shard.has(position):
                continue
            parsed = parse_row(raw, file, parse_source_row)
            report.rows += 1
            report.faults += parsed.faults(file, raw)
            if parsed.record is not None:
                yield position, parsed.record
        apply_bad_rows(report, config.data)


def run_sources(config: Config) -> list[Source]:
    """Returns the sources of `curate.sources`: `embedded`, or `NAME=PATH`, with `;LICENSE;KIND` if wanted.

    Raises:
        ConfigError: a name is missing or used twice, or a path does not exist.
    """
    sources = [_parse(text) for text in config.curate.sources]
    if not sources:
        raise ConfigError("curate.sources is empty: name embedded, or files as NAME=PATH;LICENSE")
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"curate.sources: two sources have the name {name!r}")
    return sources


def _parse(text: str) -> Source:
    place, *rest = text.split(";")
    license_name, kind, *more = [*rest, "", ""]
    name, equals, path = place.partition("=")
    if any(more) or kind not in ("", LONG_COT, *DATA_SOURCES):
        kinds = ", ".join((*DATA_SOURCES, LONG_COT))
        raise ConfigError(
            f"curate.sources: {text!r}: write NAME=PATH;LICENSE, or NAME=PATH;LICENSE;KIND with one of {kinds}"
        )
    if name == EMBEDDED and not equals:
        return Source(EMBEDDED, "", license_name or "Apache-2.0", kind)
    if not equals or not name or "/" in name:
        raise ConfigError(f"curate.sources: {text!r}: write {EMBEDDED}, or NAME=PATH;LICENSE with a NAME without '/'")
    if not Path(path).exists():
        raise ConfigError(f"curate.sources: {name}: there is no {path!r}")
    return Source(name, path, license_name or UNKNOWN_LICENSE, kind)
