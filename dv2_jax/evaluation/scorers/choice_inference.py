"""Reads which option of a multiple-choice question a reply names, as VLMEvalKit does before it asks a judge."""

from __future__ import annotations

import re
from collections.abc import Mapping

MS_VLMEVAL, UPSTREAM = "ms-vlmeval-0.0.20", "vlmeval-e8e78f05"
NONE_FITS = "Z"  # a refusal, or a reply that names none of the options
_NO_REPLY = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_TOKENS = 4
_LETTER_ALONE = re.compile(r"[\s*(\[]*([A-Za-z])[\s*)\].:]*")
_LETTER_AND_TEXT = re.compile(r"[\s*(\[]*([A-Za-z])(?:[*)\].:]+\s*|\s+)(.+)", re.DOTALL)
_ANSWER_IS = re.compile(r"(?:correct\s+)?answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)


def infer_choice(reply: str, choices: Mapping[str, str], kit: str = MS_VLMEVAL) -> str | None:
    """Returns the letter of the option that a reply names, `Z` for none of them, or None where the rules cannot tell.

    The letter must be the only one among the tokens of the reply, first within its last four; otherwise the reply must
    contain the text of exactly one option and be at most twice as long as all options. `<`, `>` and `/` separate no
    tokens, so that `<answer>A</answer>` names nothing.

    Args:
        choices: option letter → text.
        kit: `UPSTREAM` adds the rule of June 2026 that reads a letter after "answer is", without a word boundary:
            "The answer is blue" names B.
    """
    return _letter(reply, choices, kit) or _worded(reply, choices)


def _letter(reply: str, choices: Mapping[str, str], kit: str) -> str | None:
    if _NO_REPLY in reply:
        return None
    if any(refusal in reply for refusal in _REFUSALS):
        return NONE_FITS
    tokens = reply.translate(_SEPARATORS).split()
    named = [letter for letter in choices if letter in tokens]
    if len(named) == 1 and tokens.index(named[0]) >= len(tokens) - _LAST_TOKENS:
        return named[0]
    if not named and NONE_FITS in tokens:
        return NONE_FITS
    if kit == UPSTREAM and (found := _ANSWER_IS.search(reply)) and found[1].upper() in choices:
        return found[1].upper()
    return None


def _worded(reply: str, choices: Mapping[str, str]) -> str | None:
    if len(reply.lower()) > 2 * sum(map(len, choices.values())):
        return None
    contained = [letter for letter, text in choices.items() if text.lower() in reply.lower()]
    return contained[0] if len(contained) == 1 else None


def stated_option(reply: str, choices: Mapping[str, str]) -> str | None:
    """Returns the letter of the option of which a reply consists: its letter in either case, its text, or both.

    It decides what `infer_choice` leaves to the judge although there is nothing to interpret: `b`, a text that contains
    the text of another option (`dark red` next to `red`), and a letter before a text of more than three words. None where
    a reply has anything else, or fits several options.
    """
    found = {letter for letter, text in choices.items() if _plain(text) == _plain(reply)}
    if alone := _LETTER_ALONE.fullmatch(reply):
        found.add(alone[1].upper())
    if both := _LETTER_AND_TEXT.fullmatch(reply):
        letter = both[1].upper()
        if letter in choices and _plain(choices[letter]) == _plain(both[2]):
            found.add(letter)
    return found.pop() if len(found) == 1 and found <= choices.keys() else None


def read_option(reply: str, choices: Mapping[str, str]) -> str | None:
    """Returns the letter that rules read in a reply, `Z` for none of the options, or None if a judge must decide.

    An empty reply names none: there is nothing for a judge to read.
    """
    return infer_choice(reply, choices) or stated_option(reply, choices) or (None if reply.strip() else NONE_FITS)


def _plain(text: str) -> str:
    return " ".join(text.strip(" \t\n\r*`\"'").rstrip(".").split()).casefold()
