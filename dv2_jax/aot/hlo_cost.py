"""Cost model of a compiled program: FLOPs, HBM bytes and collective bytes from its HLO text, with loops multiplied out.

XLA's own cost analysis counts a loop's body once, so a scan over 28 layers costs as much as one layer. Here every
computation is counted as often as it runs. FLOPs are those of matmuls and of the attention kernels; element-wise work
counts only as HBM traffic. Collective bytes are those that one device sends in a ring: for n devices and a full array of
b bytes, an all-gather or reduce-scatter sends b (n-1)/n, an all-reduce twice that, and a permutation its operand.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from dv2_jax.aot.hlo_bytes import hbm_bytes, operand_shapes
from dv2_jax.aot.hlo_parser import Op, Shape, parse
from dv2_jax.aot.paged_kernel import is_paged_kernel, paged_kernel_costs

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Matmuls of the attention kernels, each of 2 T T hd FLOPs per head: forward QK and PV; backward QK, dO V, and dQ or dK
# and dV (splash_attention_kernel.py of JAX).
KERNEL_PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
CAUSAL = "causal_attention"  # named scope of kernels that skip half of the scores


@dataclass
class Costs:
    """Costs of one run of the program on one device."""

    flops: float = 0.0
    hbm_bytes: float = 0.0  # bytes between the core and its HBM
    collective_bytes: dict[str, int] = field(default_factory=dict)  # bytes by kind of collective
    calls: dict[str, int] = field(default_factory=dict)  # number of collectives by kind
    largest: dict[str, int] = field(default_factory=dict)  # bytes of the largest collective of a kind
    unknown_loops: int = 0  # loops with a trip count that the HLO does not state; their bodies are counted once

    def add(self, other: Costs, times: int = 1, *, moves: bool = True) -> None:
        """Adds the costs of a computation that runs `times` times; `moves=False` omits the HBM bytes of a fused one."""
        self.flops += times * other.flops
        self.hbm_bytes += times * other.hbm_bytes * moves
        for kind, size in other.collective_bytes.items():
            self.collective_bytes[kind] = self.collective_bytes.get(kind, 0) + times * size
            self.calls[kind] = self.calls.get(kind, 0) + times * other.calls[kind]
            self.largest[kind] = max(self.largest.get(kind, 0), other.largest[kind])
        self.unknown_loops += other.unknown_loops

    def add_collective(self, kind: str, size: int) -> None:
        """Adds one collective that sends `size` bytes."""
        self.add(Costs(collective_bytes={kind: size}, calls={kind: 1}, largest={kind: size}))

    @property
    def total_collective_bytes(self) -> int:
        return sum(self.collective_bytes.values())


def analyze(text: str, max_trip_count: int = 0) -> Costs:
    """Returns the costs of an optimized HLO module (`compiled.as_text()`).

    `max_trip_count` is the upper bound for data-dependent while loops; with 0 their body is counted once and they are
    counted in `unknown_loops`.
    """
    computations, entry = parse(text)
    devices = int(match[1]) if (match := re.search(r"num_partitions=(\d+)", text[:100_000])) else 1
    memo: dict[str, Costs] = {}

    def costs(name: str) -> Costs:
        if name not in memo:
            memo[name] = total = Costs()
            ops = computations[name]
            for op in ops.values():
                _count(op, ops, total, name, devices)
                total.hbm_bytes += hbm_bytes(op, ops, computations)
                if op.kind == "while":
                    length = _trip_count(op, computations, ops)
                    total.unknown_loops += length is None and not max_trip_count
                    total.add(costs(op.calls("body")[0]), (max_trip_count or 1) if length is None else length)
                elif op.kind == "conditional":
                    names = op.calls("branch_computations", "true_computation", "false_computation")
                    total.add(max(map(costs, names), key=lambda c: (c.flops, c.total_collective_bytes)))
                elif op.kind in ("fusion", "call", "call-start", "async-start"):
                    for called in op.calls("calls", "to_apply"):
                        total.add(costs(called), moves=op.kind != "fusion")
        return memo[name]

    return costs(entry)


def _trip_count(op: Op, computations: Mapping[str, Mapping[str, Op]], around: Mapping[str, Op]) -> int | None:
    """Returns the trip count of a loop: XLA's annotation, or derived from `counter < constant`, the start and the step.

    The step matters: a collective matmul processes two shards of a weight per iteration.
    """
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', op.attributes):
        return int(known[1])
    ops, body = (computations[op.calls(name)[0]] for name in ("condition", "body"))
    inner = [o for called in ops.values() for name in called.calls("calls") for o in computations[name].values()]
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
    """Returns operand `index` of a tuple."""
    return ops.get(tuple_.operands[index]) if tuple_ is not None and tuple_.kind == "tuple" else None


def _constant(op: Op | None, ops: Mapping[str, Op]) -> int | None:
    while op is not None and op.kind in ("copy", "copy-start", "copy-done", "bitcast"):
        op = ops.get(op.operands[0])
    return None if op is None else op.constant


def _step(op: Op | None, ops: Mapping[str, Op]) -> int | None:
    """Returns the sum of the constants that a chain of additions adds to an element of the loop state."""
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
            kind = "reduce-scatter"  # a reduce-scatter in TPU HLO: a fusion that slices the result of an all-reduce
        elif kind == "reduce-scatter":
            full *= size
        ring = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)
        total.add_collective(kind, round(full * ring))
    elif op.kind in ("dot", "convolution"):
        shapes = [ops[name].shapes[0] for name in op.operands[:2] if name in ops]
        if len(shapes) == 2:
            total.flops += (_dot if op.kind == "dot" else _convolution)(op, *shapes)
    elif op.kind == "custom-call" and "splash_mha" in op.attributes:
        total.flops += _attention_kernel(op, [ops[name].shapes[0] for name in op.operands if name in ops])
    elif is_paged_kernel(op):
        total.flops += paged_kernel_costs(op.shapes, operand_shapes(op, ops))[0]


def _group_size(op: Op, devices: int) -> int:
    """Returns the number of devices in each replica group."""
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
    """Returns the FLOPs of a convolution, the form of matmuls in TPU HLO: contracted dimensions are features, batch
    dimensions are spatial ones with a window that fits once."""
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
    """Counts the pairs (output, kernel tap) along one axis that read an element of the input."""
    end = (size - 1) * base
    if kernel == 1 and stride == base == dilate == 1 and low == 0:
        return min(outputs, size)
    return sum(
        1
        for o in range(outputs)
        for k in range(kernel)
        if 0 <= (position := o * stride + k * dilate - low) <= end and position % base == 0
    )


def _attention_kernel(op: Op, operands: list[Shape]) -> float:
    """Returns the FLOPs of a splash attention kernel; a causal one visits half of the blocks and the diagonal."""
    products = next(n for name, n in KERNEL_PRODUCTS.items() if name in op.attributes)
    queries = max((s for s in operands if s.dtype in ("bf16", "f32") and len(s.dims) >= 3), key=lambda s: s.elements)
    tokens, dim = queries.dims[-2:]
    block = int(match[1]) if (match := re.search(r'block_q\\*": (\d+)', op.attributes)) else 0
    share = (1 + block / tokens) / 2 if CAUSAL in op.attributes else 1.0
    return 2.0 * products * queries.elements // dim * tokens * dim * share
