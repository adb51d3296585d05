"""The sources of a curation: the embedded questions, or files in the released formats, each with its license."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dv2_jax.config import Config, ConfigError
from dv2_jax.curation.curation_rows import CurationRow
from dv2_jax.data.question import Question
from dv2_jax.data.rows import read_questions
from dv2_jax.toy.tasks import make_questions

EMBEDDED = "embedded"
UNKNOWN_LICENSE = "unknown"


@dataclass(frozen=True)
class Source:
    """A source of rows. `path` is a file or folder of parquet, jsonl or json files; empty: the embedded questions."""

    name: str
    path: str
    license: str

    def rows(self, config: Config) -> Iterator[CurationRow]:
        """Yields the rows in the order of the source; ids are the source's name and the row's own id.

        Raises:
            RowError: a file cannot be used under `data.bad_rows`.
        """
        for question in self._questions(config):
            yield CurationRow(replace(question, id=f"{self.name}/{question.id}"), self.name, self.license)

    def _questions(self, config: Config) -> Iterator[Question]:
        size = config.curate.size
        if not self.path:
            task = config.task
            yield from make_questions("train", size or task.train_size, task.seed, task.skills)
            return
        on_fault = None if config.data.bad_rows == "error" else lambda fault: None
        yield from read_questions(self.path, limit=size or None, on_fault=on_fault)


def run_sources(config: Config) -> list[Source]:
    """Returns the sources of `curate.sources`: `embedded`, or `NAME=PATH`, each optionally with `;LICENSE`.

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
    place, _, license_name = text.partition(";")
    name, equals, path = place.partition("=")
    if name == EMBEDDED and not equals:
        return Source(EMBEDDED, "", license_name or "Apache-2.0")
    if not equals or not name or "/" in name:
        raise ConfigError(f"curate.sources: {text!r}: write {EMBEDDED}, or NAME=PATH;LICENSE with a NAME without '/'")
    if not Path(path).exists():
        raise ConfigError(f"curate.sources: {name}: there is no {path!r}")
    return Source(name, path, license_name or UNKNOWN_LICENSE)
