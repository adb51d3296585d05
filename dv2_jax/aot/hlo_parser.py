"""Parser for optimized HLO text (`compiled.as_text()`): computations and their operations."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "token": 0}
_SHAPE = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_OP = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")


@dataclass(frozen=True)
class Shape:
    """Type and memory space of an array."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True  # False: in on-chip or host memory

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        bits = _BITS.get(self.dtype) or int(re.sub(r"\D", "", self.dtype.split("e")[0]) or 0)
        return self.elements * max(bits, 8) // 8 if bits else 0


@dataclass(frozen=True)
class Op:
    """One HLO operation."""

    name: str
    kind: str
    shapes: tuple[Shape, ...]  # one, or several for a tuple
    operands: tuple[str, ...]
    attributes: str
    constant: int | None = None  # value of an integer constant
    number: int | None = None  # index of a parameter
    root: bool = False

    def calls(self, *attributes: str) -> list[str]:
        """Returns the computations that the operation names in `attributes` (body, condition, calls, ...)."""
        found: list[str] = []
        for attribute in attributes:
            if match := re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes):
                found += re.findall(r"%([\w.\-]+)", match[1])
        return found


Computation = Mapping[str, Op]


def parse(text: str) -> tuple[dict[str, dict[str, Op]], str]:
    """Parses a module into computations by name and the entry's name. Raises ValueError without an entry."""
    computations: dict[str, dict[str, Op]] = {}
    entry, current, written = "", None, ""

    def finish() -> None:
        if match := _OP.match(written):
            current[match[1]] = _op(match[1], match[2], written.lstrip().startswith("ROOT"))

    for line in text.splitlines():
        if current is None:
            if line.endswith("{") and (header := _HEADER.match(line)):
                current, written = computations.setdefault(header[1], {}), ""
                entry = header[1] if line.startswith("ENTRY") else entry
        elif line == "}" or line.startswith("}, execution_thread="):
            finish()
            current = None
        elif _OP.match(line):
            finish()
            written = line
        else:  # a kernel's metadata spans several lines
            written += line
    if not entry:
        raise ValueError("no entry computation in the HLO text")
    return computations, entry


def _op(name: str, rest: str, root: bool) -> Op:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    written, rest = rest[:end], rest[end:].lstrip()
    kind, _, _ = rest.partition("(")
    close = _closing(rest, len(kind))
    inside, attributes = rest[len(kind) + 1 : close], rest[close + 1 :]
    value = int(inside) if re.fullmatch(r"-?\d+", inside) else None
    shapes = tuple(
        Shape(dtype, tuple(int(n) for n in dims.split(",") if n), "S(" not in layout)
        for dtype, dims, layout in _SHAPE.findall(written)
    )
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    constant, number = (value if kind == name else None for name in ("constant", "parameter"))
    return Op(name, kind, shapes, operands, attributes, constant, number, root)


def _closing(text: str, start: int) -> int:
    """Returns the index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses: {text[:200]}")
