"""Reads the image search results released with FVQA (`*_image_search_results_cache.pkl`) and with DeepEyesV2 (JSON).

Both map the id of a question to titles of pages and to their images: in the pickle, images of Pillow or addresses on the web;
in the JSON file, names of files. A pickle can run any code when it is loaded, so this reader builds containers, texts, numbers
and pixels only; anything else in the file is an error, and nothing of it is imported or called.
"""

from __future__ import annotations

import io
import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dv2_jax.config import ConfigError
from dv2_jax.data.faults import clip, clip_text
from dv2_jax.data.images import ImageError, load_image
from tools_service.client import SearchItem

PICKLE, JSON = ".pkl", ".json"
TITLES = ("tool_returned_web_title_list", "tool_returned_web_title")
IMAGES = ("tool_returned_images_urls", "cached_images_path")
_MAX_SIDE = 512  # pixels of a thumbnail


@dataclass(frozen=True)
class ReleasedResult:
    """One result: its title, and its image as PNG, as a file, or absent where only an address on the web is known."""

    title: str
    image: bytes | Path | None

    def item(self) -> SearchItem:
        """Converts to a result of the image search; an unreadable image is left out, as in the released code."""
        image = self.image
        if isinstance(image, Path):
            try:
                image = _png(load_image(image))
            except ImageError:
                image = None
        return SearchItem(self.title, "", "", "", image)


def read_released_cache(path: Path) -> dict[str, tuple[ReleasedResult, ...]]:
    """Returns the results of each question, best first.

    Raises:
        ConfigError: the file is damaged, contains anything but data, or has another format.
    """
    try:
        if path.suffix == PICKLE:
            with path.open("rb") as file:
                document = _DataUnpickler(file).load()
        else:
            document = json.loads(path.read_text(encoding="utf-8"))
    except (_NotData, OSError) as error:
        raise ConfigError(f"{path}: {clip_text(str(error))}") from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise ConfigError(f"{path} cannot be read, it is damaged or cut off: {type(error).__name__}: {error}") from None
    if not isinstance(document, Mapping) or not document:
        raise ConfigError(f"{path} holds {clip(document)}, not the results of each question by its id")
    return {str(key): _results(path, str(key), entry) for key, entry in document.items()}


def _results(path: Path, key: str, entry: Any) -> tuple[ReleasedResult, ...]:
    titles, images = (_lists_of(entry, names) for names in (TITLES, IMAGES))
    if titles is None or images is None:
        fields = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else clip(entry)
        raise ConfigError(f"{path}: {key!r} has {fields}, but {TITLES[0]} and {IMAGES[0]} are expected")
    padded = [*images, *[None] * (len(titles) - len(images))]
    return tuple(ReleasedResult(str(title), _image(path, image)) for title, image in zip(titles, padded, strict=False))


def _lists_of(entry: Any, names: tuple[str, ...]) -> list | None:
    values = [entry[name] for name in names if name in entry] if isinstance(entry, Mapping) else []
    return list(values[0]) if values and isinstance(values[0], (list, tuple)) else None


def _image(path: Path, value: Any) -> bytes | Path | None:
    if isinstance(value, _PickledImage):
        return value.png
    if isinstance(value, str) and not value.startswith(("http://", "https://")):
        return path.parent / value
    return None


class _NotData(Exception):
    """A pickle contains an object that is not data."""


class _PickledImage:
    """Stands for an image of Pillow: keeps its pixels, whichever class and version of Pillow wrote it."""

    png: bytes | None = None

    def __setstate__(self, state: Any) -> None:
        try:
            _, mode, size, palette, pixels = state[:5]  # later entries differ between versions
            image = Image.frombytes(mode, tuple(size), pixels)
            if mode in ("P", "PA", "L") and palette:
                image.putpalette(palette)
            self.png = _png(load_image(image))
        except (TypeError, ValueError, MemoryError):
            self.png = None  # its title is still a result


class _Ignored:
    """Stands for a value in the description of an image, which is not used."""

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    """Replaces `codecs.encode`, with which protocol 2 writes bytes."""
    return text.encode("latin1")


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "PIL.Image" and name == "Image" or module.startswith("PIL.") and name.endswith("ImageFile"):
            return _PickledImage
        if module.startswith("PIL.") or (module, name) == ("fractions", "Fraction"):
            return _Ignored
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if module in ("builtins", "__builtin__") and name in ("set", "frozenset", "bytearray", "complex"):
            return {"set": set, "frozenset": frozenset, "bytearray": bytearray, "complex": complex}[name]
        raise _NotData(
            f"contains {module}.{name}, and only containers, texts, numbers and images are read from a pickle"
        )


def _png(image: Image.Image) -> bytes:
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
