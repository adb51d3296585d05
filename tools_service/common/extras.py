"""Names the extra of the distribution that brings a missing optional library."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Wraps the import of an optional library.

    Raises:
        ValueError: it is not installed; the message names the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        command = f"pip install 'dv2-tools-service[{extra}]'"
        raise ValueError(f"{purpose} needs {error.name}, which is not installed: {command}") from None
