"""The stage read: rows of all sources are checked and stored."""

from __future__ import annotations

from dv2_jax.config import ConfigError
from dv2_jax.curation.curation import Curation
from dv2_jax.curation.curation_rows import CurationRow
from dv2_jax.curation.sources import run_sources
from dv2_jax.curation.stage import CurationStage, StagePlan, register_stage


@register_stage
class Read(CurationStage):
    """Stores every row of the sources that belongs to this shard, with its source, license and digest.

    The journal has an entry per source and shard once all of its rows are stored.
    """

    name = "read"
    labels_rows = False

    def run(self, curation: Curation) -> None:
        journal = curation.journal(self.name)
        for source in run_sources(curation.config):
            if journal.get(source.name, curation.shard.index) is not None:
                continue
            count = 0
            curation.display.line(f"reading {source.name}")
            for row in source.rows(curation.config, curation.shard):
                count += 1
                if row.id in curation.store:
                    self._check_stored(curation, source.name, row)
                else:
                    curation.store.add(row)
            journal.add(source.name, {"rows": count}, sample=curation.shard.index)

    def _check_stored(self, curation: Curation, source: str, row: CurationRow) -> None:
        """Raises ConfigError unless the stored row with this id is this row, which an interrupted reading has stored."""
        stored = curation.store.document(row.id)
        if stored.get("position", row.position) != row.position:
            raise ConfigError(f"curate.sources: {source} has two rows with the id {row.id!r}")
        if stored["digest"] != row.digest:
            raise ConfigError(
                f"curate.sources: {row.id!r} has changed since it was stored in {curation.folder}: choose another"
                " folder with --config.run.name=NAME"
            )

    def unread_shards(self, curation: Curation) -> list[int]:
        """Returns the shards that have not stored all of their rows."""
        journal, sources = curation.journal(self.name), run_sources(curation.config)
        shards = range(curation.shard.count)
        return [index for index in shards if any(journal.get(source.name, index) is None for source in sources)]

    def plan(self, curation: Curation) -> StagePlan:
        journal, index = curation.journal(self.name), curation.shard.index
        missing = [s.name for s in run_sources(curation.config) if journal.get(s.name, index) is None]
        return StagePlan(self.name, 0, note=f"sources to read: {', '.join(missing) or 'none'}")
