"""Chooses fonts for scripts that matplotlib's own fonts lack, among those that sessions may read.

Matplotlib ships DejaVu Sans, which has Latin, Greek, Cyrillic, Arabic and Hebrew letters but no Chinese, Japanese,
Korean, Indic or Thai ones. System fonts with them (Debian: fonts-wqy-microhei of 5 MB, or fonts-noto-cjk; and
fonts-noto-core) are used after DejaVu Sans. Runs in the zygote, once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

# A letter of each script that DejaVu Sans lacks, the most widely read first.
_SAMPLE_LETTERS = "国あ한हআไதతકಕગਗଓസකခខአ"
_BOX_FONTS = ("Last Resort", "LastResort", "Adobe Blank")  # have a box or an empty glyph for every character
_MAX_FONTS = 16  # matplotlib opens every font in the list, once per session that draws text


def set_up_fonts(folders: Sequence[str]) -> list[str]:
    """Restricts matplotlib to the fonts in `folders` and below, and appends fallback families to its `font.family`.

    Returns the families; none where no font adds a script.
    """
    import matplotlib
    from matplotlib import font_manager

    logging.getLogger("matplotlib.font_manager").addFilter(RepetitionFilter())
    _update_font_list(font_manager, folders)
    families = fallback_families(font_manager)
    if families:
        for settings in (matplotlib.rcParams, matplotlib.rcParamsDefault):
            # DejaVu Sans explicitly: a cell that sets `font.sans-serif` to a font which is not installed would
            # otherwise leave only the fallback families.
            settings["font.family"] = [*settings["font.family"], "DejaVu Sans", *families]
    return families


class RepetitionFilter(logging.Filter):
    """Lets each message pass once per session: matplotlib logs a missing font once per text and layout pass."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message not in self._seen
        self._seen.add(message)
        return is_new


def _update_font_list(font_manager: Any, folders: Sequence[str]) -> None:
    """Removes fonts that sessions cannot read, and adds those installed since matplotlib cached its list."""
    manager = font_manager.fontManager
    manager.ttflist = [font for font in manager.ttflist if _is_below(font.fname, folders)]
    known = {font.fname for font in manager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        if _is_below(path, folders):
            try:
                manager.addfont(path)
            except Exception:  # a file that matplotlib cannot read as a font, as in its own scan
                continue


def fallback_families(font_manager: Any) -> list[str]:
    """Returns families, in order of use, that together have the sample letters which the default font lacks."""
    missing = set(_SAMPLE_LETTERS) - _letters(font_manager, font_manager.findfont("DejaVu Sans"))
    regular = {
        font.name
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and font.weight == 400 and not font.name.startswith(_BOX_FONTS)
    }
    # The file that matplotlib uses: several may have one family name.
    files = {name: font_manager.findfont(font_manager.FontProperties(family=name)) for name in regular}
    letters = {name: _letters(font_manager, path) & missing for name, path in files.items()}
    families: list[str] = []
    for letter in _SAMPLE_LETTERS:
        candidates = [name for name, found in letters.items() if letter in found & missing]
        if candidates and len(families) < _MAX_FONTS:
            # Noto before others: its glyphs have the size and weight of DejaVu Sans.
            best = min(candidates, key=lambda n: (not n.startswith("Noto Sans"), -len(letters[n] & missing), n))
            families.append(best)
            missing -= letters[best]
    return families


def _letters(font_manager: Any, path: str) -> set[str]:
    """Returns the sample letters that the font at `path` has; none if it cannot be opened."""
    try:
        font = font_manager.get_font(path)
        return {letter for letter in _SAMPLE_LETTERS if font.get_char_index(ord(letter))}
    except (OSError, RuntimeError):
        return set()


def _is_below(path: str, folders: Sequence[str]) -> bool:
    real = os.path.realpath(path)
    return any(real.startswith(folder + os.sep) for folder in folders)
