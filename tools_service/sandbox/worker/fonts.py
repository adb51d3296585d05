"""Chooses fonts for scripts that matplotlib's own fonts lack, among those that sessions may read.

Matplotlib ships DejaVu Sans, which has Latin, Greek, Cyrillic, Arabic and Hebrew letters but no Chinese, Japanese,
Korean or Indic ones. A system font with them, such as those of Debian's fonts-noto-cjk (or fonts-droid-fallback, 4 MB)
and fonts-noto-core, is used after DejaVu Sans. Runs in the zygote, once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

# One common letter per script; a font is chosen if it has one that the fonts before it lack.
_SAMPLE_LETTERS = "国あ한हไআதతകಕગਗଓසကខລაأאԱሀ😀"
_BOX_FONTS = ("Last Resort", "LastResort", "Adobe Blank")  # have a box or an empty glyph for every character
_MAX_FONTS = 8  # every font in the list is opened for every text that is drawn


def use_fallback_fonts(readable_paths: Sequence[str]) -> list[str]:
    """Appends families to matplotlib's `font.family` and returns them; none where no readable font adds a script."""
    import matplotlib
    from matplotlib import font_manager

    families = fallback_families(font_manager, readable_paths)
    if families:
        for settings in (matplotlib.rcParams, matplotlib.rcParamsDefault):
            # DejaVu Sans explicitly: a cell that sets `font.sans-serif` to a font which is not installed would
            # otherwise leave only the fallback families.
            settings["font.family"] = [*settings["font.family"], "DejaVu Sans", *families]
    return families


def fallback_families(font_manager: Any, readable_paths: Sequence[str]) -> list[str]:
    """Returns families, in order of use, that together have the sample letters which the default font lacks."""
    missing = _missing(font_manager, font_manager.findfont("DejaVu Sans"), _SAMPLE_LETTERS)
    families: list[str] = []
    regular = (f for f in font_manager.fontManager.ttflist if f.style == "normal" and f.weight in (400, "normal"))
    # Noto before others: its glyphs have the size and weight of DejaVu Sans.
    for entry in sorted(regular, key=lambda f: (not f.name.startswith("Noto Sans"), f.name, f.fname)):
        if not missing or len(families) == _MAX_FONTS:
            break
        if entry.name in families or entry.name.startswith(_BOX_FONTS) or not _is_readable(entry.fname, readable_paths):
            continue
        left = _missing(font_manager, entry.fname, missing)
        if left != missing:
            families.append(entry.name)
            missing = left
    return families


def _missing(font_manager: Any, path: str, letters: str) -> str:
    """Returns the letters that the font at `path` lacks: all of them if it cannot be opened."""
    try:
        font = font_manager.get_font(path)
        return "".join(letter for letter in letters if not font.get_char_index(ord(letter)))
    except (OSError, RuntimeError):
        return letters


def _is_readable(path: str, readable_paths: Sequence[str]) -> bool:
    real = os.path.realpath(path)
    return any(real == allowed or real.startswith(allowed.rstrip(os.sep) + os.sep) for allowed in readable_paths)
