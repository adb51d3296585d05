"""Stands in for `IPython.display`, which notebook code imports, without IPython. Runs inside a session."""

from __future__ import annotations

import io
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image


class RichText:
    """A value with `data` and a MIME type in IPython; here its representation is its source text."""

    def __init__(self, data: Any = None, url: str | None = None, filename: str | None = None, **_: Any):
        if data is None and url is not None:
            raise ValueError(f"{url!r} cannot be opened: the sandbox has no network")
        self.data = Path(filename).read_text() if data is None and filename is not None else data

    def __repr__(self) -> str:
        return self.data if isinstance(self.data, str) else repr(self.data)


class JSON(RichText):
    """A value that is shown as indented JSON."""

    def __repr__(self) -> str:
        return self.data if isinstance(self.data, str) else json.dumps(self.data, indent=2, ensure_ascii=False)


# Subclasses, so that `isinstance` distinguishes them as in IPython.
_TEXT_CLASSES = ("HTML", "Markdown", "Latex", "Math", "SVG", "Code", "Pretty", "Javascript")


class DisplayHandle:
    """The result of `display(..., display_id=True)`; an update shows the new value after the old one."""

    def __init__(self, display: Callable[..., Any], display_id: str):
        self._display, self.display_id = display, display_id

    def display(self, *values: Any, **_: Any) -> None:
        self._display(*values)

    update = display


def open_image(data: bytes | str | None = None, url: str | None = None, filename: str | None = None, **_: Any) -> Image.Image:  # fmt: skip
    """Stands for the class `IPython.display.Image`: opens encoded bytes or a file as a PIL image."""
    if isinstance(data, bytes):
        return Image.open(io.BytesIO(data))
    path = filename or data or url
    if path is None:
        raise ValueError("Image needs data or filename")
    if str(path).startswith(("http:", "https:")):
        raise ValueError(f"{path!r} cannot be opened: the sandbox has no network")
    return Image.open(path)


def install_ipython_shim(display: Callable[..., Any]) -> None:
    """Makes `IPython`, `IPython.display` and `IPython.core.display` importable; `display` shows values."""
    package, core, module = (types.ModuleType(name) for name in ("IPython", "IPython.core", "IPython.display"))
    # Matplotlib reads `version_info`.
    vars(package).update(display=module, core=core, get_ipython=lambda: None, version_info=(9, 0, 0))
    vars(core).update(display=module)
    vars(module).update(display=display, Image=open_image, clear_output=lambda *_, **__: None)
    vars(module).update(update_display=lambda *values, **_: display(*values))
    vars(module).update(DisplayHandle=DisplayHandle, JSON=JSON, TextDisplayObject=RichText)
    for name in _TEXT_CLASSES:
        setattr(module, name, type(name, (RichText,), {}))
    for name, installed in (
        ("IPython", package), ("IPython.display", module), ("IPython.core", core), ("IPython.core.display", module),
    ):  # fmt: skip
        sys.modules.setdefault(name, installed)
