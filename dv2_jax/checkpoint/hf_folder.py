"""Opening a folder of Hugging Face weights, and one error for everything in it that does not fit the architecture."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dv2_jax.checkpoint.damage import CheckpointMismatch
from dv2_jax.checkpoint.safetensors_file import MappedFile
from dv2_jax.checkpoint.weight_map import canonical_name

INDEX = "model.safetensors.index.json"
_LISTED = 3  # tensors listed per kind of mismatch
# Prefixes that wrappers of torch modules add to every tensor name → what removes them.
_WRAPPERS = {
    "base_model.model.": "a PEFT adapter was not merged: save the result of model.merge_and_unload()",
    "module.": "DistributedDataParallel or DeepSpeed added it: save model.module instead of model",
    "_orig_mod.": "torch.compile added it: save model._orig_mod instead of model",
    "_fsdp_wrapped_module.": "FSDP added it: save a full state dict of the unwrapped model",
}


def open_folder(folder: Path) -> tuple[list[MappedFile], dict[str, np.ndarray]]:
    """Memory-maps the safetensors files of a folder; returns them and their tensors by canonical name.

    With an index only its files count, and every tensor must be in the file that the index names.

    Raises:
        FileNotFoundError: the folder has no safetensors files, or lacks some that its index names.
        CheckpointMismatch: two files hold the same tensor.
        UserError: a file is truncated or has another format.
    """
    index = _read_index(folder)
    files = sorted(set(index.values())) if index else sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern))
        hint = f"; {others[0]} must be converted first: save_pretrained(..., safe_serialization=True)" if others else ""
        raise FileNotFoundError(f"{folder}: no *.safetensors in it{hint}")
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder}: {len(absent)} files of {INDEX} are missing, among them {absent[0]}")
    mapped = {name: MappedFile(folder / name) for name in files}
    found: dict[str, np.ndarray] = {}
    origin: dict[str, tuple[str, str]] = {}  # canonical name → (file, name there)
    for file, opened in mapped.items():
        for name, tensor in opened.tensors.items():
            known = canonical_name(name)
            if known in origin:
                raise CheckpointMismatch(_duplicate(folder, origin[known], (file, name), has_index=bool(index)))
            origin[known], found[known] = (file, name), tensor
    return list(mapped.values()), found


def check_tensors(
    folder: Path,
    wanted: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, np.ndarray],
    optional: frozenset[str] = frozenset(),
) -> None:
    """Compares the tensors of a folder with the `wanted` shapes; those in `optional` may be there in addition.

    Raises:
        CheckpointMismatch: tensors are missing, unexpected or have another shape. The message counts all of them and
            lists the first ones, or names a prefix that all names share.
    """
    missing = [name for name in wanted if name not in tensors]
    unexpected = sorted(tensors.keys() - wanted.keys() - optional)
    if missing and unexpected:
        _check_wrappers(folder, wanted, unexpected)
    shapes = [name for name, shape in wanted.items() if name in tensors and tensors[name].shape != shape]
    lines = [
        *_listed("missing", [f"{name} {list(wanted[name])}" for name in missing]),
        *_listed("shape", [f"{n} is {list(tensors[n].shape)}, should be {list(wanted[n])}" for n in shapes]),
        *_listed("unexpected", [f"{name} {list(tensors[name].shape)}" for name in unexpected]),
    ]
    if lines:
        counts = f"{len(missing)} missing, {len(shapes)} of another shape, {len(unexpected)} unexpected"
        raise CheckpointMismatch(
            f"{folder} does not fit the architecture of its config.json: {counts} of {len(wanted)} tensors\n  "
            + "\n  ".join(lines)
        )


def _listed(kind: str, items: list[str]) -> list[str]:
    """Formats the first items of one kind as lines; the last line counts the others."""
    more = f" (and {len(items) - _LISTED} more)" if len(items) > _LISTED else ""
    lines = [f"{kind}: {item}" for item in items[:_LISTED]]
    return [*lines[:-1], lines[-1] + more] if lines else []


def _check_wrappers(folder: Path, wanted: Mapping[str, tuple[int, ...]], unexpected: list[str]) -> None:
    """Raises CheckpointMismatch with one line if a wrapper's prefix or an adapter explains the unexpected names."""
    adapters = [name for name in unexpected if ".lora_" in name or ".base_layer." in name]
    if adapters:
        raise CheckpointMismatch(
            f"{folder}: tensor names such as {adapters[0]!r} are those of a PEFT adapter:"
            f" {_WRAPPERS['base_model.model.']}"
        )
    prefixes: Counter[str] = Counter()
    for name in unexpected:
        parts = name.split(".")
        for start in range(1, len(parts)):
            if canonical_name(".".join(parts[start:])) in wanted:
                prefixes[".".join(parts[:start]) + "."] += 1
                break
    prefix, count = prefixes.most_common(1)[0] if prefixes else ("", 0)
    if 2 * count >= len(wanted):
        fix = next((text for known, text in _WRAPPERS.items() if prefix.startswith(known)), "remove it from the names")
        raise CheckpointMismatch(f"{folder}: {count} tensor names begin with {prefix!r}: {fix}")


def _read_index(folder: Path) -> dict[str, str]:
    """Returns the index, tensor name → file name; empty without an index."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointMismatch(f"{path} is no index of safetensors files: {type(error).__name__}: {error}") from None


def _duplicate(folder: Path, first: tuple[str, str], second: tuple[str, str], *, has_index: bool) -> str:
    (one, name), (two, other) = first, second
    if one == two:
        return f"{folder / one} holds the same tensor under two names, {name} and {other}: remove one of them"
    fix = "correct the index" if has_index else f"remove the file that does not belong there, or add {INDEX}"
    return f"{folder}: the tensor {name} is in both {one} and {two}: {fix}"
