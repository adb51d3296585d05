r"""Compares mathematical answers: first by exact rules, then by math-verify in a worker process.

Structure is compared here, because math-verify is lenient about it: both sides must have the same kind of brackets,
the same separators and relations, the same variables (case-sensitive) and compatible units. Only single expressions
that pass these checks and a limit of their cost are handed on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum

from dv2_jax.rewards.latex_form import canonical_form, split_brackets, split_top_level, variables
from dv2_jax.rewards.number_matching import equal_quantities, parse_quantity
from dv2_jax.rewards.text_matching import text_matches
from dv2_jax.rewards.units import parse_unit

MAX_CHARS = 300  # a longer expression is no final answer, and parsing takes more than linear time
_MAX_DEPTH = 8
_Pair = tuple[str, str]

_ASSIGNMENT = re.compile(
    r"^(?:[A-Za-z]|\\[A-Za-z]+ ?)(?:_\{\w+\})?(?:\([a-z](?:,[a-z])*\))?(?:=|\\in(?![A-Za-z]) ?)(?=.)"
)
_RELATION = re.compile(r"\\(?:leq|geq|neq|in|approx|equiv|sim|subset|subseteq)(?![A-Za-z])|[<>=]")
_FLIPPED = {"<": "<>", ">": "<>", r"\leq": "<=>", r"\geq": "<=>"}
_WORDS = re.compile(r"[^\W\d_]{4,}|\b(?:yes|no|odd|one|two|six|ten|max|min|all|any|none)\b", re.IGNORECASE)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}")
_TRAILING_UNIT = re.compile(r"(\\(?:text|mathrm)\s*\{([^{}]*)\}(?:\^\{(\d)\})?|\\%|%|\^\{\\circ\})$")
_KNOWN_COMMANDS = frozenset(
    "frac sqrt pi cdot times div sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp infty binom "
    "alpha beta gamma delta epsilon theta lambda mu phi omega sigma rho tau eta Delta Omega leq geq neq lfloor rfloor "
    "lceil rceil sum prod int lim rightarrow ldots".split()
)
_UNEVALUATED = re.compile(r"\\(?:sum|prod|int|lim)(?![A-Za-z])")
_COSTLY = re.compile(
    r"\^\{?-?\d{4,}|\^\{[^{}]*\^|\d{20,}|\d{4,}!|!\s*!|\)!|(?:\^\{?\d{3,}\}?[^^]{0,40}){3}"  # powers of powers, long sums
)
_MATRIX = re.compile(r"^\\begin\{([pb]?)matrix\}(.*)\\end\{\1matrix\}$", re.DOTALL)


class Verdict(Enum):
    """The result of the rules: a verdict, or that only math-verify can decide."""

    EQUAL = True
    DIFFERENT = False
    UNDECIDED = None


def math_matches(prediction: str, reference: str, ask: Callable[[str, str], bool | None]) -> bool:
    """Returns whether two mathematical answers are equal; `ask` compares two single expressions (math-verify)."""
    questions = open_questions(prediction, reference)
    return questions is not None and all(ask(*pair) is True for pair in questions)


def open_questions(prediction: str, reference: str) -> list[_Pair] | None:
    """Returns the expression pairs that must be equal for the answers to be equal; None: the rules say different."""
    if max(len(prediction), len(reference)) > 4 * MAX_CHARS:
        return None
    return _compare(canonical_form(prediction), canonical_form(reference), 0)


def equal_literals(prediction: str, reference: str) -> bool:
    """Returns whether two answers are equal by the rules alone, e.g. the same formula in another layout."""
    return open_questions(prediction, reference) == []


def _compare(pred: str, target: str, depth: int) -> list[_Pair] | None:
    if not pred or not target or depth > _MAX_DEPTH:
        return None
    if pred == target:
        return []
    quantities = parse_quantity(pred), parse_quantity(target)
    if None not in quantities:
        return [] if equal_quantities(*quantities) else None
    if _is_words(pred) or _is_words(target):
        same = text_matches(_plain_words(pred), _plain_words(target), case_of_letters=True)
        return [] if same else None
    for rule in (_compare_assignments, _compare_lists, _compare_brackets, _compare_matrices, _compare_units):
        result = rule(pred, target, depth + 1)
        if result is not Verdict.UNDECIDED:
            return None if result is Verdict.DIFFERENT else result
    return [(pred, target)] if _may_ask(pred, target) else None


def _all_equal(pairs: Sequence[_Pair], depth: int) -> list[_Pair] | Verdict:
    questions: list[_Pair] = []
    for pair in pairs:
        found = _compare(*pair, depth)
        if found is None:
            return Verdict.DIFFERENT
        questions += found
    return questions


def _compare_assignments(pred: str, target: str, depth: int) -> list[_Pair] | Verdict:
    """`x=5` is 5, and `x\\in[0,1]` is `[0,1]`; but `x=5` is not `y=5`."""
    left = [_ASSIGNMENT.match(side) for side in (pred, target)]
    values = [side[found.end() :] if found else side for side, found in zip((pred, target), left, strict=True)]
    if not any(left) or any(_RELATION.search(value) for value in values):
        return Verdict.UNDECIDED
    if any("," in value for value in values) and not all(split_brackets(value) for value in values):
        return Verdict.UNDECIDED
    if all(left) and left[0].group() != left[1].group():
        return Verdict.UNDECIDED
    return _all_equal([(values[0], values[1])], depth)


def _compare_lists(pred: str, target: str, depth: int) -> list[_Pair] | Verdict:
    r"""Lists, unions and `\pm` are compared item by item: unions and sets in any order, bare lists in their own."""
    unions = [split_top_level(side.replace(r"\cup ", r"\cup"), r"\cup") for side in (pred, target)]
    if max(map(len, unions)) > 1:
        return _any_order(*unions, depth)
    named = [_named_values(side) for side in (pred, target)]
    if all(named):
        if named[0].keys() != named[1].keys():
            return Verdict.DIFFERENT
        return _all_equal([(value, named[1][name]) for name, value in named[0].items()], depth)
    items = [_items(side) for side in (pred, target)]
    if max(len(item) for item, _ in items) < 2 and not any(is_set for _, is_set in items):
        return Verdict.UNDECIDED
    if len(items[0][0]) != len(items[1][0]):
        return Verdict.DIFFERENT
    if any(is_set for _, is_set in items):
        if any(named):
            return Verdict.DIFFERENT  # `a=1, b=2` is no set
        return _any_order(items[0][0], items[1][0], depth)
    return _all_equal(list(zip(items[0][0], items[1][0], strict=True)), depth)


def _named_values(text: str) -> dict[str, str] | None:
    """Returns the values of `a=1, b=2` by name; None for anything else, such as several values of one unknown."""
    items = [part.strip() for part in split_top_level(text, ",")]
    names = [_ASSIGNMENT.match(item) for item in items]
    if len(items) < 2 or not all(names) or len({name.group() for name in names}) < len(names):
        return None
    return {name.group(): item[name.end() :] for name, item in zip(names, items, strict=True)}


def _items(text: str) -> tuple[list[str], bool]:
    """Returns the items of a list or a set in braces, and whether order does not matter."""
    brackets = split_brackets(text)
    is_set = brackets is not None and (brackets[0], brackets[2]) == ("{", "}")
    parts = split_top_level(brackets[1] if is_set else text, ",")
    if len(parts) == 1 and (sign := re.match(r"^(\w=)?\\pm ?(?=.)", parts[0])) and r"\pm" not in parts[0][sign.end() :]:
        rest = parts[0][sign.end() :]
        if not re.search(r"[-+]", rest):
            return [rest, f"-{rest}"], True
    return [part.strip() for part in parts], is_set


def _any_order(pred: Sequence[str], target: Sequence[str], depth: int) -> list[_Pair] | Verdict:
    """Matches the items of two sets: those that are equal by the rules first, the others in their written order."""
    if len(pred) != len(target):
        return Verdict.DIFFERENT
    left = list(target)
    unmatched = []
    for item in pred:
        match = next((other for other in left if _compare(item, other, depth) == []), None)
        if match is None:
            unmatched.append(item)
        else:
            left.remove(match)
    return _all_equal(list(zip(unmatched, left, strict=True)), depth)


def _compare_brackets(pred: str, target: str, depth: int) -> list[_Pair] | Verdict:
    """Tuples, points and intervals need the same brackets; brackets around one expression only group it."""
    sides = [split_brackets(side) for side in (pred, target)]
    sequences = [side is not None and len(split_top_level(side[1], ",")) > 1 for side in sides]
    if any(sequences):
        if not all(sequences) or (sides[0][0], sides[0][2]) != (sides[1][0], sides[1][2]):
            return Verdict.DIFFERENT
        parts = [split_top_level(side[1], ",") for side in sides]
        if len(parts[0]) != len(parts[1]):
            return Verdict.DIFFERENT
        return _all_equal([(a.strip(), b.strip()) for a, b in zip(*parts, strict=True)], depth)
    grouped = [side is not None and (side[0], side[2]) == ("(", ")") for side in sides]
    if any(grouped):
        values = [side[1] if group else text for side, group, text in zip(sides, grouped, (pred, target), strict=True)]
        return _all_equal([(values[0], values[1])], depth)
    others = [side is not None and side[0] in "[{" for side in sides]
    return Verdict.DIFFERENT if any(others) and not all(others) else Verdict.UNDECIDED


def _compare_matrices(pred: str, target: str, depth: int) -> list[_Pair] | Verdict:
    sides = [_MATRIX.match(side) for side in (pred, target)]
    if not any(sides):
        return Verdict.UNDECIDED
    if not all(sides):
        return Verdict.DIFFERENT
    rows = [[row.split("&") for row in re.split(r"\\\\", side[2]) if row.strip()] for side in sides]
    if [len(row) for row in rows[0]] != [len(row) for row in rows[1]]:
        return Verdict.DIFFERENT
    cells = [[cell.strip() for row in matrix for cell in row] for matrix in rows]
    return _all_equal(list(zip(*cells, strict=True)), depth)


def _compare_units(pred: str, target: str, depth: int) -> list[_Pair] | Verdict:
    """A unit of measure behind an expression must be the same, or missing on one side; percent is never omitted."""
    found = [_TRAILING_UNIT.search(side) for side in (pred, target)]
    if not any(found):
        return Verdict.UNDECIDED
    units = [match and parse_unit(_unit_text(match)) for match in found]
    if any(match and unit is None for match, unit in zip(found, units, strict=True)):
        return Verdict.DIFFERENT
    if all(found):
        if units[0] != units[1]:
            return Verdict.DIFFERENT
    else:
        only = units[0] or units[1]
        if not only.may_be_omitted or only.dimension == "%":
            return Verdict.DIFFERENT
    values = [side[: match.start()] if match else side for side, match in zip((pred, target), found, strict=True)]
    return _all_equal([(values[0], values[1])], depth)


def _unit_text(match: re.Match[str]) -> str:
    if match[2] is None:
        return "%" if "%" in match[1] else "°"
    return match[2].strip() + (f"^{match[3]}" if match[3] else "")


def _plain_words(text: str) -> str:
    return _TEXT_COMMAND.sub(r" \1 ", text)


def _is_words(text: str) -> bool:
    """Returns whether an answer contains a word, so that its letters are no variables."""
    plain = re.sub(r"\\(?:begin|end)\s*\{[^{}]*\}", " ", text)
    plain = re.sub(_TRAILING_UNIT, "", plain) if re.search(r"\d|\\", text) else plain
    return bool(_WORDS.search(re.sub(r"\\[A-Za-z]+", " ", _plain_words(plain))))


def _may_ask(pred: str, target: str) -> bool:
    """Returns whether math-verify may decide: what it ignores or misreads must be the same on both sides."""
    both = f"{pred}  {target}"
    if max(len(pred), len(target)) > MAX_CHARS or _COSTLY.search(both):
        return False
    if _UNEVALUATED.search(pred) and not _UNEVALUATED.search(target):
        return False  # the question, copied
    if not _KNOWN_COMMANDS.issuperset(re.findall(r"\\([A-Za-z]+)", both)):
        return False
    if re.search(r"[:;%$\"'&#?@`]|\\[^A-Za-z]|[A-Z]{2}|\d_|[^\x00-\x7f]|(?<![A-Za-z0-9])0\d|\d \d|\d ?\\frac", both):
        return False  # among them subscripts of digits (bases), and mixed numbers, which are read as sums
    if variables(pred) != variables(target) or "," in both:
        return False
    if r"\times" in both or re.search(r"[a-z]{3}|[A-Za-z]\d", re.sub(r"\\[A-Za-z]+", " ", both)):
        return False  # a cross product; a word instead of a product of letters; a power that lost its mark
    relations = [sorted(_FLIPPED.get(r, r) for r in _RELATION.findall(side)) for side in (pred, target)]
    return relations[0] == relations[1]
