"""Classifies code cells by purpose: crop, numerical analysis, mark, or other.

The four classes are the paper's (appendix A.6), which does not publish its classification rule. The rule here uses
the cell's syntax tree and the number of images it returned:

* `mark`: draws (lines, boxes, text) and returns an image;
* `crop`: cuts a part out of an image and returns an image;
* `numerical`: computes and returns no image (a measurement inside a crop counts here);
* `other`: the rest: contrast, rotation, a bare `plt.show()`, comments only, code that does not parse.
"""

from __future__ import annotations

import ast
from typing import Literal

CellKind = Literal["crop", "numerical", "mark", "other"]
CELL_TITLES: dict[CellKind, str] = {
    "crop": "crop",
    "numerical": "numerical analysis",
    "mark": "mark",
    "other": "other code",
}

_CROPPING = {"crop", "getRectSubPix", "center_crop", "resized_crop"}
_DRAWING = {
    "rectangle", "rounded_rectangle", "line", "lines", "ellipse", "polygon", "arc", "chord", "pieslice", "point",
    "text", "multiline_text", "circle", "polylines", "putText", "arrowedLine", "drawContours", "drawMarker",
    "plot", "scatter", "axhline", "axvline", "hlines", "vlines", "axhspan", "axvspan", "arrow", "annotate",
    "add_patch", "paste", "add_artist", "regular_polygon",
}  # fmt: skip
_SILENT = {"print", "display", "show", "imshow", "open", "axis", "figure", "subplots"}


def classify_cell(code: str, num_images: int) -> CellKind:
    """Returns the class of one executed cell that returned `num_images` images."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "other"
    calls = {_called_name(node) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    if num_images:
        if calls & _DRAWING:
            return "mark"
        if calls & _CROPPING or any(_is_region(node) for node in ast.walk(tree)):
            return "crop"
        return "other"
    return "numerical" if _computes(tree, calls) else "other"


def _called_name(call: ast.Call) -> str:
    function = call.func
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _is_region(node: ast.AST) -> bool:
    """Returns True for `array[a:b, c:d]` with at least one bound: a rectangle of an image array."""
    if not (isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple)):
        return False
    slices = [part for part in node.slice.elts[:2] if isinstance(part, ast.Slice)]
    return len(slices) == 2 and any(part.lower or part.upper for part in slices)


def _computes(tree: ast.Module, calls: set[str]) -> bool:
    arithmetic = (ast.BinOp, ast.Compare, ast.BoolOp, ast.AugAssign, ast.comprehension, ast.For, ast.While)
    return bool(calls - _SILENT - _CROPPING) or any(isinstance(node, arithmetic) for node in ast.walk(tree))
