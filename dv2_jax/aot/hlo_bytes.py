"""HBM traffic of the operations of a compiled program, in bytes.

A fusion reads its operands and writes its results once. It reads only the slice of an operand that it slices, and writes
only the update of a buffer that it updates in place. Accesses to on-chip memory are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping

from dv2_jax.aot.hlo_parser import Computation, Op, Shape
from dv2_jax.aot.paged_kernel import is_paged_kernel, paged_kernel_costs

# These move no data, or the computations that they call are counted instead.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast while conditional call call-start async-start async-update after-all"
    " partition-id replica-id opt-barrier add-dependency".split()
)
_VIEWS = ("bitcast", "reshape", "copy", "convert", "transpose")


def hbm_bytes(op: Op, ops: Computation, computations: Mapping[str, Computation]) -> int:
    """Returns the HBM bytes of one run of `op`, an operation of `ops`; of called computations, only a fusion's count."""
    if op.kind in _FREE or op.kind.endswith("-done") or 'custom_call_target="AllocateBuffer"' in op.attributes:
        return 0
    if op.kind == "fusion":
        return _fusion(op, ops, computations)
    if is_paged_kernel(op):
        return paged_kernel_costs(op.shapes, operand_shapes(op, ops))[1]
    written = _bytes(op.shapes[:1] if op.kind.endswith("-start") else op.shapes)
    if op.kind in ("dynamic-slice", "gather", "slice"):
        return 2 * written
    if op.kind in ("dynamic-update-slice", "scatter"):
        return 2 * _bytes(_shapes(ops, op.operands[-1 if op.kind == "scatter" else 1]))
    return written + sum(_bytes(_shapes(ops, name)) for name in dict.fromkeys(op.operands))


def operand_shapes(op: Op, ops: Computation) -> list[Shape]:
    """Returns the shapes of an operation's operands; an operand that occurs several times is listed once."""
    return [shape for name in dict.fromkeys(op.operands) for shape in _shapes(ops, name)]


def _bytes(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if shape.in_hbm)


def _shapes(ops: Computation, name: str) -> tuple[Shape, ...]:
    return ops[name].shapes if name in ops else ()


def _fusion(op: Op, ops: Computation, computations: Mapping[str, Computation]) -> int:
    inner = computations[op.calls("calls")[0]]
    read = 0
    for number, name in enumerate(op.operands):
        operand = _bytes(_shapes(ops, name))
        if operand:
            inside = next((o.name for o in inner.values() if o.number == number), None)
            read += operand if inside is None else min(operand, _read(inside, inner, computations))
    root = next((o for o in inner.values() if o.root), None)
    results = [inner.get(name) for name in root.operands] if root is not None and root.kind == "tuple" else [root]
    if len(results) != len(op.shapes):
        return read + _bytes(op.shapes)
    return read + sum(_written(o, inner, computations) for o, s in zip(results, op.shapes, strict=True) if s.in_hbm)


def _read(name: str, ops: Computation, computations: Mapping[str, Computation]) -> int:
    """Returns the bytes read of a fusion's parameter: its used slices, 0 if it is only updated in place, else its size."""
    total = 0
    for user in (o for o in ops.values() if name in o.operands):
        if user.kind in ("dynamic-slice", "gather", "slice") and user.operands[0] == name:
            total += sum(shape.bytes for shape in user.shapes)
        elif user.kind in ("dynamic-update-slice", "scatter") and user.operands[0] == name:
            continue
        elif user.kind in _VIEWS and not user.root:
            total += _read(user.name, ops, computations)
        elif user.kind == "fusion":
            inner = computations[user.calls("calls")[0]]
            inside = next((o.name for o in inner.values() if o.number == user.operands.index(name)), None)
            total += ops[name].shapes[0].bytes if inside is None else _read(inside, inner, computations)
        else:
            return sum(shape.bytes for shape in ops[name].shapes)
    return total


def _written(op: Op | None, ops: Computation, computations: Mapping[str, Computation]) -> int:
    """Returns the bytes written of a fusion's result: the update of a buffer that is updated in place, else its size."""
    while op is not None and op.kind in _VIEWS:
        op = ops.get(op.operands[0])
    if op is None or op.kind == "parameter":
        return 0
    if op.kind in ("dynamic-update-slice", "scatter"):
        return sum(shape.bytes for shape in _shapes(ops, op.operands[-1 if op.kind == "scatter" else 1]))
    if op.kind == "fusion" and len(op.shapes) == 1:
        inner = computations[op.calls("calls")[0]]
        return _written(next((o for o in inner.values() if o.root), None), inner, computations)
    return sum(shape.bytes for shape in op.shapes)
