"""Computes constant arithmetic expressions with Python's operators, and nothing else of Python."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

Number = int | float | complex
_MAX_CHARS = 300
_MAX_BITS = 4096  # of an integer: bounds the time of each operation
_BINARY: dict[type[ast.operator], Callable] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.BitXor: operator.xor, ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
}  # fmt: skip
_UNARY: dict[type[ast.unaryop], Callable] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
}


def compute(text: str) -> Number | None:
    """Returns the value of an expression of numbers, such as `3*(4-1)/2`; None for anything else.

    `^` is the exclusive or, as in Python: `2^3` is 1.
    """
    if len(text) > _MAX_CHARS:
        return None
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float, complex):
        return _bounded(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _power(left, right)
        return _bounded(_BINARY[type(node.op)](left, right)) if type(node.op) in _BINARY else _fail()
    return _fail()


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > _MAX_BITS:
        return _fail()
    return _bounded(base**exponent)


def _bounded(value: Number) -> Number:
    return _fail() if isinstance(value, int) and value.bit_length() > _MAX_BITS else value


def _fail() -> Number:
    raise ValueError("not a constant arithmetic expression")
