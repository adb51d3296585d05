"""What a compiled program computes and sends, read from its HLO text with loop bodies multiplied out.

XLA's own cost analysis counts a loop's body once, so a scan over 28 layers is worth one of them. Here every
computation is counted as often as it runs. Matrix products alone: attention kernels and element-wise work are not
in the FLOPs. Bytes are those that one device sends in a ring: for n devices and a full array of b bytes an
all-gather or reduce-scatter sends b (n-1)/n, an all-reduce twice that, a permutation what it holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "token": 0}
_SHAPE = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_OP = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")


@dataclass(frozen=True)
class Shape:
    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        bits = _BITS.get(self.dtype) or int(re.sub(r"\D", "", self.dtype.split("e")[0]) or 0)
        return self.elements * max(bits, 8) // 8 if bits else 0


@dataclass(frozen=True)
class Op:
    name: str
    kind: str
    shapes: tuple[Shape, ...]  # one; several for a tuple
    operands: tuple[str, ...]
    attributes: str
    constant: int | None = None


@dataclass
class Costs:
    """Of one device, for one run of the program."""

    flops: float = 0.0
    sent: dict[str, int] = field(default_factory=dict)  # bytes by kind of collective
    calls: dict[str, int] = field(default_factory=dict)
    unknown_loops: int = 0  # whose length the text does not tell; their bodies are counted once

    def add(self, other: Costs, times: int = 1) -> None:
        self.flops += times * other.flops
        for name, sent in other.sent.items():
            self.send(name, times * sent, times * other.calls[name])
        self.unknown_loops += other.unknown_loops

    def send(self, kind: str, sent: int, calls: int = 1) -> None:
        self.sent[kind] = self.sent.get(kind, 0) + sent
        self.calls[kind] = self.calls.get(kind, 0) + calls

    @property
    def bytes_sent(self) -> int:
        return sum(self.sent.values())


def analyse(text: str) -> Costs:
    """Costs of an optimised module (`compiled.as_text()`)."""
    computations, entry = _parse(text)
    devices = int(match[1]) if (match := re.search(r"num_partitions=(\d+)", text[:100_000])) else 1
    memo: dict[str, Costs] = {}

    def costs(name: str) -> Costs:
        if name not in memo:
            memo[name] = total = Costs()
            ops = computations[name]
            for op in ops.values():
                _count(op, ops, total, name, devices)
                if op.kind == "while":
                    length = _trip_count(op, computations, ops)
                    total.unknown_loops += length is None
                    total.add(costs(_called(op, "body")[0]), 1 if length is None else length)
                elif op.kind == "conditional":
                    branches = [costs(b) for b in _called(op, "branch_computations", "true_computation", "false_computation")]
                    total.add(max(branches, key=lambda c: (c.flops, c.bytes_sent)))
                elif op.kind in ("fusion", "call", "async-start"):
                    for called in _called(op, "calls", "to_apply"):
                        total.add(costs(called))
        return memo[name]

    return costs(entry)


def _parse(text: str) -> tuple[dict[str, dict[str, Op]], str]:
    computations: dict[str, dict[str, Op]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if line.endswith("{") and (header := _HEADER.match(line)):
                current = computations.setdefault(header[1], {})
                entry = header[1] if line.startswith("ENTRY") else entry
        elif line == "}":  # alone: what a kernel says of itself runs over several lines, some of which begin so
            current = None
        elif match := _OP.match(line):
            op = _op(match[1], match[2])
            current[op.name] = op
    if not entry:
        raise ValueError("no entry computation in the HLO text")
    return computations, entry


def _op(name: str, rest: str) -> Op:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    written, rest = rest[:end], rest[end:].lstrip()
    kind, _, _ = rest.partition("(")
    close = _closing(rest, len(kind))
    inside, attributes = rest[len(kind) + 1 : close], rest[close + 1 :]
    constant = int(inside) if kind == "constant" and re.fullmatch(r"-?\d+", inside) else None
    shapes = tuple(Shape(d, tuple(int(n) for n in dims.split(",") if n)) for d, dims in _SHAPE.findall(written))
    return Op(name, kind, shapes, tuple(re.findall(r"%([\w.\-]+)", inside)), attributes, constant)


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at ``start``."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses: {text[:200]}")


def _called(op: Op, *attributes: str) -> list[str]:
    found: list[str] = []
    for attribute in attributes:
        if match := re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", op.attributes):
            found += re.findall(r"%([\w.\-]+)", match[1])
    return found


def _trip_count(op: Op, computations: Mapping[str, Mapping[str, Op]], around: Mapping[str, Op]) -> int | None:
    """Runs of the body: as XLA noted it, or from `counter < constant`, the counter's first value and its step.

    The step matters: a product that gathers a weight piece by piece takes two pieces per run of its loop.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', op.attributes):
        return int(known[1])
    ops, body = (computations[_called(op, name)[0]] for name in ("condition", "body"))
    inner = [o for called in ops.values() for name in _called(called, "calls") for o in computations[name].values()]
    compared = [o for o in (*ops.values(), *inner) if o.kind == "compare"]
    bounds = [o.constant for o in ops.values() if o.constant is not None]
    counters = [o for o in ops.values() if o.kind == "get-tuple-element"]
    if len(compared) != 1 or "direction=LT" not in compared[0].attributes or len(bounds) != 1 or len(counters) != 1:
        return None
    index = int(re.search(r"index=(\d+)", counters[0].attributes)[1])
    start = _constant(_element(around.get(op.operands[0]), index, around), around)
    step = _step(_element(list(body.values())[-1], index, body), body)
    return None if start is None or not step else max(-((start - bounds[0]) // step), 0)


def _element(tuple_: Op | None, index: int, ops: Mapping[str, Op]) -> Op | None:
    """Operand `index` of a tuple."""
    return ops.get(tuple_.operands[index]) if tuple_ is not None and tuple_.kind == "tuple" else None


def _constant(op: Op | None, ops: Mapping[str, Op]) -> int | None:
    while op is not None and op.kind in ("copy", "copy-start", "copy-done", "bitcast"):
        op = ops.get(op.operands[0])
    return None if op is None else op.constant


def _step(op: Op | None, ops: Mapping[str, Op]) -> int | None:
    """What a chain of additions of constants adds to an element of the loop's state."""
    total = 0
    while op is not None and op.kind in ("add", "copy", "bitcast"):
        if op.kind == "add":
            constants = [ops[name].constant for name in op.operands if name in ops and ops[name].constant is not None]
            if len(constants) != 1:
                return None
            total += constants[0]
        op = next((ops[name] for name in op.operands if name in ops and ops[name].constant is None), None)
    return total if op is not None and op.kind == "get-tuple-element" else None


def _count(op: Op, ops: Mapping[str, Op], total: Costs, computation: str, devices: int) -> None:
    kind = op.kind.removesuffix("-start")
    if kind in COLLECTIVES:
        size = _group_size(op, devices)
        full = max(s.bytes for s in op.shapes) if op.kind.endswith("-start") else sum(s.bytes for s in op.shapes)
        share = (size - 1) / size
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # as a TPU writes one: an all-reduce whose result is sliced in the same fusion
        elif kind == "reduce-scatter":
            full *= size
        ring = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
        total.send(kind, round(full * ring))
    elif op.kind in ("dot", "convolution"):
        shapes = [ops[name].shapes[0] for name in op.operands[:2] if name in ops]
        if len(shapes) == 2:
            total.flops += (_dot if op.kind == "dot" else _convolution)(op, *shapes)


def _group_size(op: Op, devices: int) -> int:
    """Devices that take part together."""
    if op.kind.startswith("collective-permute"):
        return 2
    text = op.attributes
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(match[2])
    if match := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
        return math.prod(sizes.get(name, 1) for name in re.findall(r"'([^']+)'", match[2])) or 1
    if match := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(match[1].split(","))
    return devices


def _dot(op: Op, left: Shape, right: Shape) -> float:
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", op.attributes)
    dims = [int(d) for d in contracted[1].split(",") if d] if contracted else []
    return 2.0 * op.shapes[0].elements * math.prod(left.dims[d] for d in dims)


def _convolution(op: Op, left: Shape, right: Shape) -> float:
    """How a TPU writes a matrix product: contracted dimensions are features, batched ones a window that fits once."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attributes)
    input_, kernel, output = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", op.attributes)
    options = dict(part.split("=") for part in window[1].split()) if window else {}
    taps = 1
    spatial = sorted(c for c in output if c.isdigit())
    for i, axis in enumerate(spatial):

        def option(name, default, i=i):
            return [int(v) for v in options[name].split("x")[i].split("_")] if name in options else default

        size = left.dims[input_.index(axis)]
        taps *= _positions(
            outputs=op.shapes[0].dims[output.index(axis)],
            kernel=right.dims[kernel.index(axis)],
            size=size,
            stride=option("stride", [1])[0],
            low=option("pad", [0, 0])[0],
            base=option("lhs_dilate", [1])[0],
            dilate=option("rhs_dilate", [1])[0],
        )
    groups = re.search(r"batch_group_count=(\d+)", op.attributes)
    batch = op.shapes[0].dims[output.index("b")]
    features = op.shapes[0].dims[output.index("f")]
    contracted = right.dims[kernel.index("i")]
    return 2.0 * batch * features * contracted * taps / (int(groups[1]) if groups else 1)


def _positions(*, outputs: int, kernel: int, size: int, stride: int, low: int, base: int, dilate: int) -> int:
    """Pairs (output, kernel tap) along one axis that meet an element of the input."""
    end = (size - 1) * base
    if kernel == 1 and stride == base == dilate == 1 and low == 0:
        return min(outputs, size)
    return sum(
        1
        for o in range(outputs)
        for k in range(kernel)
        if 0 <= (place := o * stride + k * dilate - low) <= end and place % base == 0
    )
