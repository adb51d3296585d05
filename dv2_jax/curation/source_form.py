"""Defines the form of a source's rows: which rows it recognizes, and how it converts them.

Adding one is a subclass in one file, registered with `@register_form`. A row is converted by the one form that recognizes
its fields; a row that none recognizes is a fault that lists the fields it has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dv2_jax.agent.trajectory import TurnRecord
from dv2_jax.config.registry import Registry
from dv2_jax.data.faults import clip_text
from dv2_jax.data.question import Question
from dv2_jax.data.row_fields import RowReader


@dataclass(frozen=True)
class SourceRow:
    """A row as converted.

    Attributes:
        question: the question; `messages` is its own prompt, None: the run's prompt is built.
        conversation: all messages of a stored trajectory as they were read; None: the row is a question alone.
        turns: the turns of the stored trajectory, with their observations and images.
    """

    question: Question
    conversation: tuple[dict[str, str], ...] | None = None
    turns: tuple[TurnRecord, ...] = ()


class SourceForm(ABC):
    """A form of rows. Forms exclude one another: no row is recognized by two."""

    name: str

    @abstractmethod
    def recognizes(self, row: Mapping[str, Any]) -> bool:
        """Returns whether a row has the fields of this form."""

    @abstractmethod
    def parse(self, row: Mapping[str, Any], id_: str, reader: RowReader) -> SourceRow | None:
        """Converts a row; returns None if it has added issues to `reader`."""


FORMS: Registry[type[SourceForm]] = Registry(
    "form of rows", "curate.sources", package="dv2_jax.curation.forms", base=SourceForm
)


def register_form(cls: type[SourceForm]) -> type[SourceForm]:
    """Registers a form under its `name`; a class decorator."""
    return FORMS.register(cls.name)(cls)


def parse_source_row(row: Mapping[str, Any], id_: str, reader: RowReader) -> SourceRow | None:
    """Converts a row by the form that recognizes it; returns None if `reader` has collected issues."""
    for name in FORMS.names():
        form = FORMS.get(name)()
        if form.recognizes(row):
            return form.parse(row, id_, reader)
    fields = clip_text(", ".join(map(str, row)))
    fix = (
        "use the released formats (prompt and reward_model, or messages), those of MMSearch-R1, or the fields question and"
        " answer with images"
    )
    reader.add("missing field", "", f"the row has the fields {fields or '(none)'}, which no known format has", fix)
    return None
