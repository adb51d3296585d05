"""A text file that is written piece by piece and appears under its name only when it is complete."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from dv2_jax.files import PARTIAL


@contextmanager
def streamed_file(path: Path) -> Iterator[TextIO]:
    """Opens a file for writing; an exception leaves an earlier file of that name unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        with open(partial, "w", encoding="utf-8", errors="replace", newline="\n") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
