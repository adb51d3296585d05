"""Published checkpoints (safetensors, `config.json`) in and out, without torch.

Loading maps the files and copies each device's part of each tensor straight to the device: a large stacked array is
filled layer by layer, so the host holds one tensor beside the arrays. Writing gathers one tensor after another. A
tensor that is loaded and written again in its own dtype is byte-identical.
"""

from __future__ import annotations

import functools
import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from dv2_jax.checkpoint import safetensors_file
from dv2_jax.checkpoint.output_folder import OutputFolder, output_folder
from dv2_jax.checkpoint.weight_map import Entry, canonical, entries
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import Params, abstract_params

INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # of one file
LARGE_BYTES = 2**28  # a stacked array above this is filled layer by layer; below, one copy is quicker


class CheckpointMismatch(ValueError):
    """Checkpoint and architecture disagree; the message lists every tensor that does."""


def load_hf(
    path: str | Path, config: ModelConfig, shardings: Mapping[str, Sharding] | None = None, dtype: Any = jnp.float32
) -> Params:
    """Read the weights of a checkpoint folder into arrays of `dtype`, placed by `shardings`.

    Raises FileNotFoundError without safetensors files, CheckpointMismatch with every missing, unexpected and
    misshapen tensor at once.
    """
    files = _open_folder(Path(path))
    tensors = {canonical(name): tensor for file in files for name, tensor in file.tensors.items()}
    shapes = abstract_params(config, dtype)
    parts: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries(config):
        parts[entry.ours].append(entry)
    _check(Path(path), config, tensors, parts, shapes)
    default = SingleDeviceSharding(jax.devices()[0])
    params = {}
    for name, abstract in shapes.items():
        layers = [_view(tensors[e.published], e, _part_shape(abstract.shape, e)) for e in parts[name]]
        stacked = parts[name][0].layer is not None
        sharding = shardings[name] if shardings is not None else default
        # Host memory of an array is free once it has arrived; without waiting, several would be under way.
        params[name] = jax.block_until_ready(_place(abstract, sharding, layers, stacked))
        for file in files:
            file.release()
    return params


def _place(abstract: jax.ShapeDtypeStruct, sharding: Sharding, layers: list[np.ndarray], stacked: bool) -> jax.Array:
    """One of our arrays from its layers (or its only part), in the layout of ours but the dtype of the file."""
    shape, dtype = abstract.shape, abstract.dtype
    if not stacked:
        return jax.make_array_from_callback(shape, sharding, lambda index: layers[0][index].astype(dtype))
    of_layer = _layer_sharding(sharding)
    if math.prod(shape) * dtype.itemsize > LARGE_BYTES and of_layer is not None:
        zeros, put = _fill(shape, dtype, sharding)
        array = zeros()
        for number, layer in enumerate(layers):
            part = jax.make_array_from_callback(
                shape[1:], of_layer, lambda index, layer=layer: layer[index].astype(dtype)
            )
            array = jax.block_until_ready(put(array, part, number))
        return array

    def read(index: tuple[slice, ...]) -> np.ndarray:
        chosen = layers[index[0]]
        out = np.empty((len(chosen), *chosen[0][index[1:]].shape), dtype)
        for i, layer in enumerate(chosen):
            out[i] = layer[index[1:]]
        return out

    return jax.make_array_from_callback(shape, sharding, read)


def _layer_sharding(sharding: Sharding) -> Sharding | None:
    """Of one layer of a stacked array; None where the layers themselves are split."""
    if isinstance(sharding, SingleDeviceSharding):
        return sharding
    if not isinstance(sharding, NamedSharding) or (sharding.spec and sharding.spec[0] is not None):
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


@functools.lru_cache(maxsize=64)
def _fill(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding) -> tuple[Callable, Callable]:
    """``zeros() -> array`` and ``put(array, layer, number) -> array``, which takes the array's place."""
    zeros = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)

    def put(array, layer, number):
        return jax.lax.dynamic_update_index_in_dim(array, layer, number, 0)

    return zeros, jax.jit(put, donate_argnums=0, out_shardings=sharding)


def save_hf(
    path: str | Path,
    params: Params,
    config: ModelConfig,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write weights, index and `config.json` to the new folder `path`; it appears whole or not at all.

    Every process calls it; process 0 writes. Raises FileExistsError when `path` holds anything.
    """
    with output_folder(path) as folder:
        write_weights(folder, params, config, dtype, shard_bytes=shard_bytes)
        folder.write_text("config.json", json.dumps(config.to_hf(dtype), indent=2))


def write_weights(
    folder: OutputFolder,
    params: Params,
    config: ModelConfig,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """The weights in files of at most `shard_bytes` (a larger tensor has one of its own), and their index.

    Collective: every process calls it, and gathers each tensor in turn.
    """
    target = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    groups: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries(config):
        groups[entry.published].append(entry)
    shapes = {
        name: _published_shape(_part_shape(params[parts[0].ours].shape, parts[0]), parts[0], config)
        for name, parts in groups.items()
    }
    sizes = {name: math.prod(shape) * target.itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    index = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = (_publish(params, groups[name], config).astype(target) for name in names)
        with folder.create(file) as stream:
            safetensors_file.write(stream, {name: shapes[name] for name in names}, target, tensors)
        index |= dict.fromkeys(names, file)
    if len(shards) > 1:
        document = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}
        folder.write_text(INDEX, json.dumps(document, indent=2))


def _open_folder(folder: Path) -> list[safetensors_file.MappedFile]:
    if (folder / INDEX).is_file():
        files = sorted({folder / name for name in json.loads((folder / INDEX).read_text())["weight_map"].values()})
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder}: no *.safetensors in it")
    return [safetensors_file.MappedFile(file) for file in files]


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
    problems += [
        f"unexpected: {name} {list(tensors[name].shape)}" for name in sorted(set(tensors) - set(wanted) - spare)
    ]
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
