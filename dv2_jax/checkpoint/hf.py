"""Published checkpoints (safetensors, `config.json`) in and out, without torch.

Loading maps the files and copies each device's slice of each array straight to the device, so the host holds no more
than one such slice beside the arrays. Writing gathers one tensor after another. A tensor that is loaded and written
again in its own dtype is byte-identical.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding
from safetensors.numpy import save_file

from dv2_jax.checkpoint.weight_map import Entry, canonical, entries
from dv2_jax.model.config import ModelConfig
from dv2_jax.model.params import Params, abstract_params

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # of one file
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}


class CheckpointMismatch(ValueError):
    """Checkpoint and architecture disagree; the message lists every tensor that does."""


def load_hf(
    path: str | Path, config: ModelConfig, shardings: Mapping[str, Sharding] | None = None, dtype: Any = jnp.float32
) -> Params:
    """Read the weights of a checkpoint folder into arrays of `dtype`, placed by `shardings`.

    Raises FileNotFoundError without safetensors files, CheckpointMismatch with every missing, unexpected and
    misshapen tensor at once.
    """
    tensors = _open_folder(Path(path))
    shapes = abstract_params(config, dtype)
    parts: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries(config):
        parts[entry.ours].append(entry)
    _check(Path(path), config, tensors, parts, shapes)
    default = SingleDeviceSharding(jax.devices()[0])
    params = {}
    for name, abstract in shapes.items():
        sharding = shardings[name] if shardings is not None else default
        layers = [_view(tensors[e.published], e, _part_shape(abstract.shape, e)) for e in parts[name]]

        def read(index, layers=layers, stacked=parts[name][0].layer is not None):
            if not stacked:
                return np.asarray(layers[0][index]).astype(dtype)
            chosen = layers[index[0]]
            out = np.empty((len(chosen), *chosen[0][index[1:]].shape), dtype)
            for i, layer in enumerate(chosen):
                out[i] = layer[index[1:]]
            return out

        params[name] = jax.make_array_from_callback(abstract.shape, sharding, read)
    return params


def save_hf(
    path: str | Path,
    params: Params,
    config: ModelConfig,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    *,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write weights, index and `config.json` to the new folder `path`; it appears whole or not at all.

    Every process calls it; process 0 writes. Raises FileExistsError when `path` exists.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists: name another folder, or remove it first")
    target = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries(config):
        groups[entry.published].append(entry)
    sizes = {name: sum(_size(params, e) for e in parts) * np.dtype(target).itemsize for name, parts in groups.items()}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size

    writes = jax.process_index() == 0
    staging = path.with_name(f".{path.name}.partial-{os.getpid()}")
    if writes:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    index = {}
    try:
        for number, names in enumerate(shards, start=1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors = {}
            for name in names:
                tensor = _publish(params, groups[name], config)
                if writes:
                    tensors[name] = np.ascontiguousarray(tensor.astype(target))
                index[name] = file
            if writes:
                save_file(tensors, staging / file, metadata={"format": "pt"})
        if writes:
            if len(shards) > 1:
                document = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}
                (staging / INDEX).write_text(json.dumps(document, indent=2))
            (staging / "config.json").write_text(json.dumps(config.to_hf(dtype), indent=2))
            staging.rename(path)
    finally:
        if writes:
            shutil.rmtree(staging, ignore_errors=True)
    return path


def _open_folder(folder: Path) -> dict[str, np.ndarray]:
    """Memory-mapped tensors of all files, under their canonical names."""
    if (folder / INDEX).is_file():
        files = sorted({folder / name for name in json.loads((folder / INDEX).read_text())["weight_map"].values()})
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder}: no *.safetensors in it")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        for name, tensor in _map_file(file).items():
            tensors[canonical(name)] = tensor
    return tensors


def _map_file(file: Path) -> dict[str, np.ndarray]:
    """The format is eight bytes of header length, a JSON header, then the tensors."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ValueError(f"{file} is no safetensors file, or a cut one: {error}") from None
    header.pop("__metadata__", None)
    needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if file.stat().st_size < needed:
        raise ValueError(f"{file} is cut: it has {file.stat().st_size:,} of {needed:,} bytes")
    data = np.memmap(file, np.uint8, "r", offset=8 + length)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{file}: {name} has dtype {entry['dtype']}; there are {', '.join(_DTYPES)}")
        begin, end = entry["data_offsets"]
        tensors[name] = data[begin:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def _check(folder: Path, config: ModelConfig, tensors, parts, shapes) -> None:
    problems = []
    wanted: dict[str, tuple[int, ...]] = {}
    for name, layers in parts.items():
        for entry in layers:
            wanted[entry.published] = _published_shape(_part_shape(shapes[name].shape, entry), entry, config)
    for name, shape in wanted.items():
        if name not in tensors:
            problems.append(f"missing: {name} {list(shape)}")
        elif tensors[name].shape != shape:
            problems.append(f"shape: {name} is {list(tensors[name].shape)}, should be {list(shape)}")
    spare = {"lm_head.weight"} if config.text.tie_word_embeddings else set()  # some writers repeat the tied matrix
    problems += [f"unexpected: {name} {list(tensors[name].shape)}" for name in sorted(set(tensors) - set(wanted) - spare)]
    if problems:
        raise CheckpointMismatch(
            f"{folder} does not fit the architecture in {len(problems)} tensors:\n  " + "\n  ".join(problems)
        )


def _part_shape(shape: tuple[int, ...], entry: Entry) -> tuple[int, ...]:
    """Shape of one layer of an array (or of all of an unstacked one)."""
    return shape[1:] if entry.layer is not None else shape


def _inputs(shape: tuple[int, ...], entry: Entry) -> int:
    """Leading dimensions of a kernel that are its inputs: two where it takes all heads, else one."""
    return 2 if len(shape) == 3 and entry.ours.endswith("o.kernel") else 1


def _published_shape(shape: tuple[int, ...], entry: Entry, config: ModelConfig) -> tuple[int, ...]:
    thirds = 3 if entry.third is not None else 1
    if entry.form == "same":
        # Biases of heads are flat in a checkpoint; matrices that are copied (the embedding) keep their shape.
        return shape if entry.ours == "text.embedding" else (thirds * math.prod(shape),)
    if entry.form == "convolution":
        vision = config.vision
        return (shape[1], vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    inputs = _inputs(shape, entry)
    return (thirds * math.prod(shape[inputs:]), math.prod(shape[:inputs]))


def _view(tensor: np.ndarray, entry: Entry, shape: tuple[int, ...]) -> np.ndarray:
    """A published tensor in our layout; a view, so that slicing it reads only the slice."""
    if entry.third is not None:
        size = tensor.shape[0] // 3
        tensor = tensor[entry.third * size : (entry.third + 1) * size]
    if entry.form == "same":
        return tensor.reshape(shape)
    if entry.form == "convolution":
        return tensor.reshape(tensor.shape[0], -1).T
    inputs = _inputs(shape, entry)
    split = tensor.reshape(*shape[inputs:], *shape[:inputs])
    outputs = len(shape) - inputs
    return split.transpose(*range(outputs, len(shape)), *range(outputs))


def _size(params: Params, entry: Entry) -> int:
    return math.prod(_part_shape(params[entry.ours].shape, entry))


def _publish(params: Params, parts: list[Entry], config: ModelConfig) -> np.ndarray:
    """One published tensor from our arrays, on the host."""
    pieces = []
    for entry in parts:
        array = params[entry.ours] if entry.layer is None else params[entry.ours][entry.layer]
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            from jax.experimental import multihost_utils

            array = multihost_utils.process_allgather(array, tiled=True)
        array = np.asarray(array)
        if entry.form == "kernel":
            inputs = _inputs(array.shape, entry)
            columns = math.prod(array.shape[:inputs])
            array = array.reshape(columns, -1).T
        elif entry.form == "convolution":
            array = array.T.reshape(_published_shape(array.shape, entry, config))
        elif entry.ours != "text.embedding":
            array = array.reshape(-1)
        pieces.append(array)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
