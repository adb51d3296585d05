"""The interface of an export format, and its registry: adding a format adds one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dv2_jax.config.registry import Registry
from dv2_jax.evaluation.exports.exported_run import ExportedRun

EXPORT_FORMATS: Registry[type[ExportFormat]] = Registry(
    "export format", "--format", package="dv2_jax.evaluation.exports"
)


@dataclass(frozen=True)
class ExportOptions:
    """Options of the command: whether images are embedded, and the folder of benchmark files, if not that of the run."""

    with_images: bool = False
    data: str = ""


class ExportFormat(ABC):
    """Writes a run in the format of another tool."""

    name: ClassVar[str]  # as `--format` names it

    @abstractmethod
    def write(self, run: ExportedRun, output: Path, options: ExportOptions) -> list[Path]:
        """Writes the files of every evaluation of the run into the folder `output`, and returns their paths."""


def register_export_format(cls: type[ExportFormat]) -> type[ExportFormat]:
    """Registers a format under its name; a class decorator."""
    return EXPORT_FORMATS.register(cls.name)(cls)
