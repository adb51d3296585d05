r"""Rewrites LaTeX and typed mathematics into one canonical form, and splits it at top-level commas and operators.

The form keeps everything that has meaning: letter case, brackets, signs, spaces between digits. It removes layout
(`\left`, `\,`, `\displaystyle`), writes `\dfrac` as `\frac`, `x^2` as `x^{2}` and `<=` as `\leq`.
"""

from __future__ import annotations

import re

from dv2_jax.rewards.answer_format import closing_brace, fold_characters, unwrap

_LAYOUT = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|middle|displaystyle|textstyle|limits|nolimits)(?![A-Za-z])|(?<!\\)\\(?:[,;:!]|(?= ))"
)
_SPACES = re.compile(r"\\q?quad(?![A-Za-z])|~|(?<!\\)\\ ")
_SYNONYMS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "le": "leq", "ge": "geq", "leqslant": "leq", "geqslant": "geq",
    "ne": "neq", "varnothing": "emptyset", "lbrace": "{", "rbrace": "}", "arcsin": "arcsin", "lvert": "|",
    "rvert": "|", "vert": "|", "land": "wedge", "lor": "vee", "to": "rightarrow", "degree": "^{\\circ}",
    "dots": "ldots", "cdots": "ldots",
}  # fmt: skip
_SYMBOLS = {
    "≤": r"\leq ", "≥": r"\geq ", "≠": r"\neq ", "<=": r"\leq ", ">=": r"\geq ", "!=": r"\neq ", "∞": r"\infty ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ", "×": r"\times ", "·": r"\cdot ",
    "⋅": r"\cdot ", "∗": r"\cdot ", "÷": r"\div ", "°": r"^{\circ}", "π": r"\pi ", "α": r"\alpha ", "β": r"\beta ",
    "γ": r"\gamma ", "δ": r"\delta ", "θ": r"\theta ", "λ": r"\lambda ", "μ": r"\mu ", "φ": r"\phi ", "ω": r"\omega ",
    "σ": r"\sigma ", "ρ": r"\rho ", "Δ": r"\Delta ", "Ω": r"\Omega ", "√": r"\sqrt ", "→": r"\rightarrow ",
}  # fmt: skip
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp|max|min|gcd|lcm"
_BARE_FUNCTION = re.compile(rf"(?<![\\A-Za-z])({_FUNCTIONS})(?![A-Za-z])")
_TYPED_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)|\\sqrt\s*\(([^()]*)\)")
_SEPARATOR = re.compile(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|,?\s+\b(?:and|or)\b\s+")
_OPENING, _CLOSING = "([{", ")]}"


def canonical_form(text: str) -> str:
    r"""Returns the canonical form of an answer in LaTeX or typed mathematics."""
    text = unwrap(fold_characters(unwrap(text)))
    text = text.replace("{,}", ",").replace("**", "^")
    for symbol, command in _SYMBOLS.items():
        text = text.replace(symbol, command)
    text = _SPACES.sub(" ", _LAYOUT.sub("", text))
    text = re.sub(r"\\([A-Za-z]+)", lambda found: _synonym(found.group(1)), text)
    text = _TYPED_ROOT.sub(lambda found: rf"\sqrt{{{found.group(1) or found.group(2)}}}", text)
    text = _BARE_FUNCTION.sub(r"\\\1", text)
    text = _SEPARATOR.sub(", ", text)
    text = re.sub(r"(?<=\d)\s*\\times(?![A-Za-z])|\\times(?=\s*\d)|\*", r"\\cdot ", text)
    text = re.sub(r"\\frac\s*([0-9A-Za-z])\s*([0-9A-Za-z])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\s*([0-9A-Za-z])\s*\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\frac\s*(\{[^{}]*\})\s*([0-9A-Za-z])", r"\\frac\1{\2}", text)
    text = re.sub(r"\\sqrt\s*([0-9]+|[A-Za-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"([_^])\s*(-?\d+|[A-Za-z])", r"\1{\2}", text)
    text = re.sub(r"(^|[(\[{,]\s*)\+(?=\s*[\w\\(])", r"\1", text)
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", r"^{\\circ}", text)
    text = _without_spaces(text)
    while text.startswith("{") and closing_brace(text, 0) == len(text) - 1 and "," not in text:
        text = text[1:-1]
    return text


def _synonym(name: str) -> str:
    replacement = _SYNONYMS.get(name, name)
    if replacement in ("{", "}"):
        return f"\\{replacement}"
    return replacement if not replacement.isalpha() else f"\\{replacement}"


def _without_spaces(text: str) -> str:
    """Removes spaces except between two letters or digits, where they separate numbers, words or a command's name."""
    return re.sub(r"(?<![A-Za-z0-9])\s+|\s+(?![A-Za-z0-9])", "", " ".join(text.split()))


def split_top_level(text: str, separator: str) -> list[str]:
    """Splits at `separator` outside all brackets. Bracket types may differ (`(0,1]`)."""
    parts, depth, start, index = [], 0, 0, 0
    while index < len(text):
        if depth == 0 and text.startswith(separator, index):
            parts.append(text[start:index])
            index += len(separator)
            start = index
            continue
        depth += (text[index] in _OPENING) - (text[index] in _CLOSING)
        index += 1
    return [*parts, text[start:]]


def split_brackets(text: str) -> tuple[str, str, str] | None:
    r"""Returns (opening, content, closing) if one pair of brackets encloses all of `text`; `\{` and `{` are braces."""
    opening = next((mark for mark in (r"\{", "{", "(", "[", r"\langle") if text.startswith(mark)), None)
    closing = next((mark for mark in (r"\}", r"\rangle", "}", ")", "]") if text.endswith(mark)), None)
    if opening is None or closing is None or len(text) < len(opening) + len(closing):
        return None
    content = text[len(opening) : -len(closing)]
    return (opening.strip("\\"), content.strip(), closing.strip("\\")) if _balanced(content) else None


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth < 0:
            return False
    return depth == 0


def variables(text: str) -> frozenset[str]:
    """Returns the single letters and Greek commands that occur outside command names."""
    greek = re.findall(
        r"\\(alpha|beta|gamma|delta|epsilon|theta|lambda|mu|phi|omega|sigma|rho|tau|eta|Delta|Omega)\b", text
    )
    return frozenset(greek) | frozenset(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", text)))
