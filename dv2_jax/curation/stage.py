"""Defines a stage of a curation: it labels rows, one at a time, in an append-only journal, and decides by the labels.

Adding one is a subclass in one file::

    @register_stage
    class Language(CurationStage):
        name = "language"

        def run(self, curation):
            for row in curation.unlabeled_rows(self.name):
                curation.journal(self.name).add(row.id, {"language": detect(row.question.text)})

        def decide(self, entries, settings, before):
            kept = entries[0]["language"] == "en"
            return before if kept else Decision(DROPPED, self.name, "not English")

`--config.curate.stages=read,my_package.my_module:Language,mix` runs it. A stage sees the rows that the stages before it in
`curate.stages` keep.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dv2_jax.config import ConfigError, CurateConfig
from dv2_jax.config.registry import Registry
from dv2_jax.curation.curation_rows import RowForm
from dv2_jax.curation.decisions import Decision

if TYPE_CHECKING:
    from dv2_jax.curation.curation import Curation


@dataclass(frozen=True)
class StagePlan:
    """The work that a stage has now: rows to label, and requests at most, retries aside.

    `tokens` is the expected number of sampled tokens and `seconds` the expected time, None if no earlier answer allows an
    estimate. `cost` is in the currency of the price table, None without one.
    """

    stage: str
    rows: int
    requests: int = 0
    tokens: float | None = None
    seconds: float | None = None
    cost: float | None = None
    note: str = ""


@dataclass(frozen=True)
class SingleRequest:
    """A request to an endpoint that does not depend on another reply. `key` as in `ChatEndpoint.complete`."""

    model: str
    messages: Sequence[Mapping[str, Any]]
    parameters: Mapping[str, Any]
    key: str = ""


class CurationStage(ABC):
    """A stage. Its journal has entries by row and sample; `decide` reads nothing else, so that it is a pure function."""

    name: str
    labels_rows: bool = True  # False: the stage has no entry per row, and decides nothing
    is_global: bool = False  # compares rows of all shards: run by the first shard, after the others' stages before it

    @abstractmethod
    def run(self, curation: Curation) -> None:
        """Labels every row of the shard that needs it. Interrupted, the same call continues.

        Raises:
            ServiceOutage: an endpoint or the tools service has given no result for too long.
            RunFailure: the disk is full, or the budget is used up.
        """

    def decide(self, entries: Sequence[Mapping[str, Any]], settings: CurateConfig, before: Decision) -> Decision:
        """Returns the decision on a row after this stage.

        Args:
            entries: the row's entries in the stage's journal, by sample; never empty.
            before: the decision of the stages before this one; it keeps the row.
        """
        return before

    def samples(self, settings: CurateConfig) -> int:
        """Returns the number of entries that a row may have."""
        return 1

    def is_complete(self, entries: Sequence[Mapping[str, Any]], settings: CurateConfig) -> bool:
        """Returns whether a row has all the entries that `decide` needs."""
        return bool(entries)

    def applies(self, before: Decision, form: RowForm) -> bool:
        """Returns whether the stage labels a row of this form with this decision."""
        return True

    def single_requests(self, curation: Curation) -> Iterator[SingleRequest]:
        """Yields the missing requests that can be sent in batch files; a stage whose answers are conversations has none.

        Raises:
            ConfigError: the model has no name, or runs on the own engine.
        """
        return iter(())

    def plan(self, curation: Curation) -> StagePlan:
        """Returns the work that `run` has now."""
        return StagePlan(self.name, len(curation.unlabeled_ids(self.name)))


STAGES: Registry[type[CurationStage]] = Registry(
    "stage", "curate.stages", package="dv2_jax.curation.stages", base=CurationStage
)


def register_stage(cls: type[CurationStage]) -> type[CurationStage]:
    """Registers a class of stages under its `name`; a class decorator."""
    return STAGES.register(cls.name)(cls)


def run_stages(settings: CurateConfig) -> list[CurationStage]:
    """Returns the stages of `curate.stages` in their order.

    Raises:
        ConfigError: one is unknown or named twice.
    """
    found = []
    for spec in settings.stages:
        cls = STAGES.get(spec)
        if cls.name in [stage.name for stage in found]:
            raise ConfigError(f"curate.stages: {cls.name!r} is named twice")
        found.append(cls())
    return found


def decide_row(
    row_entries: Mapping[str, Sequence[Mapping[str, Any]]],
    stages: Sequence[CurationStage],
    settings: CurateConfig,
    start: Decision,
    form: RowForm,
) -> Decision:
    """Returns the decision on a row from its entries by stage: the stages decide in order until one drops it."""
    decision = start
    for stage in stages:
        if not (stage.labels_rows and stage.applies(decision, form)):
            continue
        entries = row_entries.get(stage.name, ())
        if not stage.is_complete(entries, settings):
            return Decision("waiting", stage.name)
        decision = stage.decide(entries, settings, decision)
        if not decision.is_open:
            return decision
    return decision
