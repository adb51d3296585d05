"""One curation: its configuration, stored rows and journals, and the models and tools that stages ask for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dv2_jax.config import Config, CurateConfig
from dv2_jax.curation.curation_budget import CurationBudget
from dv2_jax.curation.curation_rows import IMAGES, CurationRow, Journal, RowStore, Shard, store_image
from dv2_jax.curation.decisions import COLD_START, RL, Decision
from dv2_jax.curation.settings_check import check_settings
from dv2_jax.curation.stage import CurationStage, decide_row, run_stages
from dv2_jax.data.images import ImageFile
from dv2_jax.telemetry.progress import Display


class Curation:
    """The state of a curation on disk, as one shard sees it.

    Args:
        folder: the run directory, on a file system that all shards mount.
    """

    def __init__(self, config: Config, folder: Path, display: Display):
        self.config, self.folder, self.display = config, folder, display
        self.budget = CurationBudget.of_curation(config.curate)
        self.shard = Shard.parse(config.curate.shard)
        self.stages: Sequence[CurationStage] = run_stages(config.curate)
        self.store = RowStore(folder, self.shard)
        self._journals = {stage.name: Journal(folder, stage.name, self.shard) for stage in self.stages}

    @classmethod
    @contextmanager
    def open(cls, config: Config, folder: Path, display: Display) -> Iterator[Curation]:
        """Opens the curation in `folder`, or starts it there.

        Raises:
            ConfigError: the folder has labels of other settings, or belongs to another recipe.
        """
        check_settings(config, folder)
        curation = cls(config, folder, display)
        try:
            curation.budget.add_stored(curation.stored_costs())
            yield curation
        finally:
            curation.close()

    @property
    def settings(self) -> CurateConfig:
        """The section `curate` of the configuration."""
        return self.config.curate

    @property
    def reply_path(self) -> Path:
        """The stored replies of endpoints to this shard's requests."""
        return self.folder / "replies" / f"{self.shard.name}.jsonl"

    def stage(self, name: str) -> CurationStage:
        """Returns the stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def journal(self, stage: str) -> Journal:
        """Returns the journal of a stage."""
        return self._journals[stage]

    def entries(self, row_id: str) -> dict[str, list[dict[str, Any]]]:
        """Returns the row's entries by stage, in the order of samples."""
        return {
            stage.name: self.journal(stage.name).of_row(row_id, stage.samples(self.settings)) for stage in self.stages
        }

    def decision(self, row_id: str, stages: Sequence[CurationStage] | None = None) -> Decision:
        """Returns the decision on a row by the given stages, by default all."""
        stages = self.stages if stages is None else stages
        form = self.store.form(row_id)
        no_benefit = "benefit" not in self._journals and "synthesize" in self._journals
        start = Decision(RL if form == "question" and not no_benefit else COLD_START)
        return decide_row(self.entries(row_id), stages, self.settings, start, form)

    def reaching_ids(self, name: str) -> list[str]:
        """Returns the rows that the stages before `name` keep, and that `name` applies to, sorted."""
        stage = self.stage(name)
        before = self.stages[: self.stages.index(stage)]
        ids = self.store.ids() if stage.is_global else self.store.own_ids()
        decisions = ((row_id, self.decision(row_id, before)) for row_id in ids)
        return [
            row_id
            for row_id, decision in decisions
            if decision.is_open and stage.applies(decision, self.store.form(row_id))
        ]

    def turns(self, row_id: str) -> list[dict[str, Any]]:
        """Returns the turns of a row's trajectory in JSON types: those of its teacher, or those that were read with it."""
        if self.store.form(row_id) == "trajectory":
            return self.store.document(row_id).get("turns", [])
        entry = self.journal("synthesize").get(row_id) if "synthesize" in self._journals else None
        return [] if entry is None else entry["turns"]

    def unlabeled_ids(self, name: str) -> list[str]:
        """Returns the rows that reach the stage and lack entries, sorted."""
        stage, journal = self.stage(name), self.journal(name)
        samples = stage.samples(self.settings)
        reaching = self.reaching_ids(name)
        return [row for row in reaching if not stage.is_complete(journal.of_row(row, samples), self.settings)]

    def unlabeled_rows(self, name: str) -> Iterator[CurationRow]:
        """Reads the rows of `unlabeled_ids` one at a time."""
        return self.store.rows(self.unlabeled_ids(name))

    def store_image(self, data: bytes) -> str:
        """Stores an encoded image once and returns its file name."""
        return store_image(self.folder, data)

    def read_image(self, name: str) -> bytes:
        """Reads a stored image."""
        return ImageFile.read(self.folder / IMAGES / name)

    def stored_costs(self) -> Iterator[float | None]:
        """Yields the cost of every stored answer of this shard's journals."""
        for journal in self._journals.values():
            for entry in journal.entries():
                if "cost" in entry:
                    yield entry["cost"]

    def close(self) -> None:
        """Closes all files."""
        self.store.close()
        for journal in self._journals.values():
            journal.close()
