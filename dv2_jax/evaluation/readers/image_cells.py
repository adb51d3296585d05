"""Decodes the `image` cells of VLMEvalKit's TSV files: base64, a list of base64, the index of another row, or nothing."""

from __future__ import annotations

import ast
import binascii
import re
from pathlib import Path

from dv2_jax.data.faults import Issue, clip, clip_text
from dv2_jax.data.images import ImageFile
from dv2_jax.evaluation.readers.pandas_columns import MISSING

MAX_REFERENCE = 64  # characters; a longer cell holds an image itself
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_SPACE = b" \t\r\n"
_LIST_ITEM = re.compile(rb"""\s*(?:'([^']*)'|"([^"]*)")\s*(,|\])""")
_MISSING = frozenset(word.encode() for word in MISSING)
_LONGEST_MISSING = max(map(len, _MISSING))


def is_missing(cell: bytes) -> bool:
    """Returns True for a cell that pandas reads as a missing value."""
    return len(cell) <= _LONGEST_MISSING and cell in _MISSING  # no hash of a long cell


def reference(cell: bytes) -> str:
    """Returns the index of the row whose image a cell stands for; empty if the cell holds its own image, or none."""
    return "" if len(cell) > MAX_REFERENCE or is_missing(cell) else cell.decode("utf-8", "replace").strip()


def base64_parts(cell: bytes) -> list[bytes] | None:
    """Returns the base64 texts of a cell that holds images; None for a list that is not one of quoted texts."""
    cell = cell.strip()
    if not cell.startswith(b"["):
        return [cell]
    parts, position = [], 1
    while match := _LIST_ITEM.match(cell, position):
        parts.append(match[1] if match[1] is not None else match[2])
        position = match.end()
        if match[3] == b"]":
            return parts if position == len(cell) else None
    return [] if cell == b"[]" else None


def image_cell_issue(cell: bytes) -> Issue | None:
    """Returns the problem of a cell that should hold images, without decoding it; None if there is none."""
    parts = base64_parts(cell)
    if parts is None:
        fix = "write ['BASE64', 'BASE64', ...]"
        return Issue("image", "image", f"is a list whose items are not all quoted: {clip(_start(cell))}", fix)
    for number, part in enumerate(parts):
        if problem := _base64_problem(part):
            field = "image" if len(parts) == 1 else f"image[{number}]"
            fix = "encode the image file with base64.b64encode, or leave the row out"
            return Issue("image", field, f"{problem}: {clip(_start(part))}", fix)
    return None


def _base64_problem(part: bytes) -> str:
    """Checks what `binascii.a2b_base64` checks, several times as fast: it reads every byte of files of gigabytes."""
    part = _payload(part)
    rest = part.translate(None, _ALPHABET)
    spaces = len(rest) - len(rest.translate(None, _SPACE)) if rest else 0
    padding = rest.translate(None, _SPACE)
    if not part.strip():
        return "is empty where base64 text belongs"
    if padding not in (b"", b"=", b"==") or not part.rstrip(_SPACE).endswith(padding):
        return f"is not base64 (it contains {clip(padding[:4].decode('utf-8', 'replace'))})"
    if (len(part) - spaces) % 4:
        return f"is base64 that is cut off ({len(part) - spaces:,} characters, no multiple of 4)"
    return ""


def decode_images(cell: bytes) -> tuple[bytes, ...]:
    """Returns the encoded images of a cell.

    Raises:
        ValueError: the cell holds no base64 text.
    """
    parts = base64_parts(cell)
    if parts is None:
        raise ValueError("a list whose items are not all quoted")
    try:
        return tuple(binascii.a2b_base64(_payload(part)) for part in parts)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None


def _payload(part: bytes) -> bytes:
    return part.partition(b",")[2] if part.startswith(b"data:") else part


def _start(cell: bytes) -> str:
    return cell[:100].decode("utf-8", "replace") + ("…" if len(cell) > 100 else "")


def path_list(text: str) -> list[str]:
    """Returns the file names of an `image_path` cell: one name, or a list literal of several."""
    text = text.strip()
    if not text.startswith("["):
        return [text] if text else []
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return [text]
    return [str(name) for name in names]


def find_image_file(name: str, tsv: Path) -> Path | None:
    """Returns the image file that a TSV names: at that path, or in `images/STEM` or the folder of the TSV."""
    stem = tsv.stem.removesuffix("_local")
    own = tsv.parent / "images" / stem
    for path in (own / name, tsv.parent / name, own / Path(name).name):  # an absolute name stays as it is
        if path.is_file():
            return path
    return None


def read_image_file(path: Path) -> bytes:
    """Returns the content of an image file.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return ImageFile.read(path)
    except OSError as error:
        raise ValueError(clip_text(f"{path}: {error.strerror or error}")) from None
