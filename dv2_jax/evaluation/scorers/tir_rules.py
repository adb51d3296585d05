"""The rules of TIR-Bench's 13 tasks: letters, numbers, pairs of numbers, sets with partial credit, jigsaw positions.

The official evaluation first lets a language model extract the answer from the response. `read_answer` takes an answer as it
is where it can be read without one.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from dv2_jax.rewards import answers_match

OCR, WORD_SEARCH, SPOT_DIFFERENCE, JIGSAW = "ocr", "word_search", "spot_difference", "jigsaw"
TASKS = (
    "maze", "color", WORD_SEARCH, JIGSAW, "rotation_game", OCR, "refcoco", SPOT_DIFFERENCE, "visual_search", "symbolic",
    "math", "contrast", "instrument",
)  # fmt: skip
LETTERS = "ABCDEFGHIJ"
# Corrections of the official scorer: part of the first image's name → answer.
CORRECTED_OCR = {"60.jpg": "mobi", "62.jpg": "aires"}

_DECORATION = re.compile(r"^[\s*_`\"'(\[{<]+|[\s*_`\"')\]}>.]+$")
_LABEL = re.compile(
    r"^(?:the\s+)?(?:final\s+|correct\s+)?(?:extracted\s+)?(?:answer|option|choice)\s*(?:is\s*)?:?\s+", re.I
)
_OPTION = re.compile(r"([A-J])\s*[.:)]\s*(\S.*)", re.DOTALL)
_NUMBERS = re.compile(r"[\[(]?\s*\d+(?:[\s,，;]+\d+)*\s*[\])]?")
_PAIR = re.compile(r"\b(\d+)\s*,\s*(\d+)\b")


def answer_kind(task: str, answer: str) -> str:
    """Returns the form of a reference answer: `text`, `letter`, `letters`, `integer`, `decimal`, `pair`, `set`, `grid`.

    Raises:
        ValueError: it has none of them.
    """
    if task == OCR:
        return "text"
    if task == JIGSAW:
        return "grid"
    if answer.isalpha():
        return "letter" if len(answer) == 1 else "letters"
    if _is(int, answer):
        return "integer"
    if task == WORD_SEARCH and _PAIR.search(answer):
        return "pair"
    if task == SPOT_DIFFERENCE:
        return "set"
    if _is(float, answer):
        return "decimal"
    raise ValueError(f"the answer {answer!r} of a question of the task {task!r} has no form that the benchmark scores")


def read_answer(kind: str, prediction: str, prompt: str = "", difficulty: int = 0) -> str | None:
    """Returns the answer that `prediction` is, without any other text; None if a model has to extract it.

    Args:
        kind: of `answer_kind`.
        prompt: the question with its options, for an answer in the words of an option.
        difficulty: number of pieces per side of a jigsaw.
    """
    bare = _bare(prediction)
    if kind == "letter":
        return _read_letter(bare, prompt)
    if kind == "letters":
        letters = re.sub(r"[\s,;]|\band\b", "", bare)
        return letters if letters.isalpha() and (letters.isupper() or " " not in bare) else None
    if kind in ("integer", "decimal"):
        compact = bare.replace(",", "") if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", bare) else bare
        return compact if _is(float, compact) else None
    if kind == "pair":
        return bare if re.fullmatch(r"\d+\s*,\s*\d+", bare) else None
    if kind in ("set", "grid"):
        numbers = re.findall(r"\d+", bare)
        is_complete = kind == "set" or len(numbers) == difficulty**2
        return bare if _NUMBERS.fullmatch(bare) and is_complete else None
    return prediction


def score_answer(kind: str, extracted: str, answer: str, prompt: str = "", difficulty: int = 0) -> float:
    """Returns the score, from 0 to 1, of an extracted answer, by the official rules.

    One rule differs: an extracted answer that names no option is wrong; the official scorer takes the letter with the
    smallest edit distance, which for most texts is A.
    """
    return _RULES[kind](extracted, answer, prompt, difficulty)


def _letter(extracted: str, answer: str, prompt: str, difficulty: int) -> float:
    return float(_read_letter(_bare(extracted), prompt) == answer)


def _letters(extracted: str, answer: str, prompt: str, difficulty: int) -> float:
    return float(sorted(extracted) == sorted(answer))


def _number(extracted: str, answer: str, prompt: str, difficulty: int) -> float:
    digits = re.sub(r"[A-Za-z*:\s]+", "", extracted)
    if _is(float, digits) and float(digits) == float(answer):
        return 1.0
    return float(answers_match(extracted, answer, "math"))


def _text(extracted: str, answer: str, prompt: str, difficulty: int) -> float:
    return float(answer in extracted)


def _pair(extracted: str, answer: str, prompt: str, difficulty: int) -> float:
    found, wanted = _PAIR.search(extracted), _PAIR.search(answer)
    return float(None not in (found, wanted) and _integers(found[0]) == _integers(wanted[0]))


def _set(extracted: str, answer: str, prompt: str, difficulty: int) -> float:
    found, wanted = set(_integers(extracted)), set(_integers(answer))
    return len(found & wanted) / len(found | wanted) if found | wanted else 1.0


def _grid(extracted: str, answer: str, prompt: str, difficulty: int) -> float:
    found, wanted = _run_of(extracted, difficulty**2), _run_of(answer, difficulty**2)
    if not found or not wanted:
        return 0.0
    return sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)


_RULES: dict[str, Callable[[str, str, str, int], float]] = {
    "letter": _letter, "letters": _letters, "integer": _number, "decimal": _number, "text": _text,
    "pair": _pair, "set": _set, "grid": _grid,
}  # fmt: skip


def _run_of(text: str, count: int) -> list[int]:
    """Returns the first run of numbers, separated by commas and white space only, that has `count` of them."""
    runs = (re.findall(r"\d+", run) for run in re.findall(r"[\d\s,，]+", text))
    return next(([int(number) for number in run] for run in runs if len(run) == count), [])


def _read_letter(bare: str, prompt: str) -> str | None:
    if bare in tuple(LETTERS):
        return bare
    if (option := _OPTION.fullmatch(bare)) and _is_option(prompt, option[1], option[2]):
        return option[1]
    worded = [letter for letter in LETTERS if len(bare) > 1 and _is_option(prompt, letter, bare)]
    return worded[0] if len(worded) == 1 else None


def _is_option(prompt: str, letter: str, wording: str) -> bool:
    """Returns whether the prompt has a line or clause `A. wording`."""
    pattern = rf"(?<!\w){letter}\s*[.:)]?\s*{re.escape(wording.strip())}(?!\w)"
    return re.search(pattern, prompt) is not None


def _bare(text: str) -> str:
    """Returns `text` without Markdown, brackets around all of it, a final full stop, and words such as `Answer:`."""
    text = re.sub(r"\\boxed\{(.*)\}", r"\1", text.strip(), flags=re.DOTALL).replace("*", "")
    return _DECORATION.sub("", _LABEL.sub("", _DECORATION.sub("", text)))


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _is(type_: type, text: str) -> bool:
    try:
        type_(text)
    except ValueError:
        return False
    return True
