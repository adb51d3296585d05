"""Reading and writing Hugging Face checkpoints (safetensors and `config.json`) without torch.

Loading memory-maps the files and copies each device's shard of each tensor directly to the device. A large stacked
array is filled layer by layer, so host memory is bounded by one tensor on top of the device arrays. Writing gathers one
tensor at a time. Loading a tensor and writing it in the same dtype is byte-identical.
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
from dv2_jax.checkpoint.hf_folder import INDEX, check_tensors, open_folder
from dv2_jax.checkpoint.output_folder import OutputFolder, output_folder
from dv2_jax.checkpoint.weight_map import WeightEntry, weight_entries
from dv2_jax.model.model_config import ModelConfig
from dv2_jax.model.params import Params, abstract_params

SHARD_BYTES = 5 * 10**9  # maximum size of one safetensors file
LARGE_BYTES = 2**28  # stacked arrays above this size are filled layer by layer; below, a single copy is faster


def load_hf(
    path: str | Path, config: ModelConfig, shardings: Mapping[str, Sharding] | None = None, dtype: Any = jnp.float32
) -> Params:
    """Load the weights of a checkpoint folder into arrays of `dtype`, sharded by `shardings`.

    Without `shardings` the arrays are put on the first device.

    Raises:
        FileNotFoundError: the folder has no safetensors files.
        CheckpointMismatch: tensors are missing, unexpected, twice there or have another shape; all are counted.
    """
    files, tensors = open_folder(Path(path))
    shapes = abstract_params(config, dtype)
    parts: dict[str, list[WeightEntry]] = defaultdict(list)
    for entry in weight_entries(config):
        parts[entry.jax_name].append(entry)
    # Some writers repeat the tied matrix.
    spare = frozenset({"lm_head.weight"} if config.text.tie_word_embeddings else ())
    check_tensors(Path(path), _wanted_shapes(config, parts, shapes), tensors, spare)
    default = SingleDeviceSharding(jax.devices()[0])
    params = {}
    for name, abstract in shapes.items():
        layers = [_view(tensors[e.hf_name], e, _part_shape(abstract.shape, e)) for e in parts[name]]
        stacked = parts[name][0].layer is not None
        sharding = shardings[name] if shardings is not None else default
        # Blocks until the transfer is complete, so that only one array at a time occupies host memory.
        params[name] = jax.block_until_ready(_to_device_array(abstract, sharding, layers, stacked))
        for file in files:
            file.release()
    return params


def _to_device_array(
    abstract: jax.ShapeDtypeStruct, sharding: Sharding, layers: list[np.ndarray], stacked: bool
) -> jax.Array:
    """Build a device array from views of its layers (or of its only tensor), which have the dtype of the file."""
    shape, dtype = abstract.shape, abstract.dtype
    if not stacked:
        return jax.make_array_from_callback(shape, sharding, lambda index: layers[0][index].astype(dtype))
    layer_sharding = _layer_sharding(sharding)
    if math.prod(shape) * dtype.itemsize > LARGE_BYTES and layer_sharding is not None:
        zeros, write_layer = _layer_writer(shape, dtype, sharding)
        array = zeros()
        for number, layer in enumerate(layers):
            part = jax.make_array_from_callback(
                shape[1:], layer_sharding, lambda index, layer=layer: layer[index].astype(dtype)
            )
            array = jax.block_until_ready(write_layer(array, part, number))
        return array

    def read(index: tuple[slice, ...]) -> np.ndarray:
        chosen = layers[index[0]]
        out = np.empty((len(chosen), *chosen[0][index[1:]].shape), dtype)
        for i, layer in enumerate(chosen):
            out[i] = layer[index[1:]]
        return out

    return jax.make_array_from_callback(shape, sharding, read)


def _layer_sharding(sharding: Sharding) -> Sharding | None:
    """Return the sharding of one layer of a stacked array; None if the layer dimension itself is sharded."""
    if isinstance(sharding, SingleDeviceSharding):
        return sharding
    if not isinstance(sharding, NamedSharding) or (sharding.spec and sharding.spec[0] is not None):
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


@functools.lru_cache(maxsize=64)
def _layer_writer(shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding) -> tuple[Callable, Callable]:
    """Build `zeros() -> array` and `write_layer(array, layer, number) -> array`, which donates `array`."""
    zeros = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)

    def write_layer(array, layer, number):
        return jax.lax.dynamic_update_index_in_dim(array, layer, number, 0)

    return zeros, jax.jit(write_layer, donate_argnums=0, out_shardings=sharding)


def save_hf(
    path: str | Path,
    params: Params,
    config: ModelConfig,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write weights, index and `config.json` to the new folder `path` atomically. Collective; process 0 writes.

    Raises:
        FileExistsError: `path` is a non-empty folder.
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
    """Write the weights to safetensors files of at most `shard_bytes` (or one larger tensor), and their index.

    Collective: the shards of each tensor are gathered over all processes, one tensor at a time.
    """
    target = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    groups: dict[str, list[WeightEntry]] = defaultdict(list)
    for entry in weight_entries(config):
        groups[entry.hf_name].append(entry)
    shapes = {
        name: _hf_shape(_part_shape(params[parts[0].jax_name].shape, parts[0]), parts[0], config)
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
        tensors = (_to_hf_tensor(params, groups[name], config).astype(target) for name in names)
        with folder.create(file) as stream:
            safetensors_file.write_safetensors(stream, {name: shapes[name] for name in names}, target, tensors)
        index |= dict.fromkeys(names, file)
    if len(shards) > 1:
        document = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": index}
        folder.write_text(INDEX, json.dumps(document, indent=2))


def _wanted_shapes(
    config: ModelConfig, parts: Mapping[str, list[WeightEntry]], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that the architecture needs, by canonical name."""
    return {
        entry.hf_name: _hf_shape(_part_shape(shapes[name].shape, entry), entry, config)
        for name, layers in parts.items()
        for entry in layers
    }


def _part_shape(shape: tuple[int, ...], entry: WeightEntry) -> tuple[int, ...]:
    """Return the shape of one layer of a stacked array, or that of an unstacked array."""
    return shape[1:] if entry.layer is not None else shape


def _inputs(shape: tuple[int, ...], entry: WeightEntry) -> int:
    """Count the leading input dimensions of a kernel: two (heads, head dim) for output projections, else one."""
    return 2 if len(shape) == 3 and entry.jax_name.endswith("o.kernel") else 1


def _hf_shape(shape: tuple[int, ...], entry: WeightEntry, config: ModelConfig) -> tuple[int, ...]:
    fused = 3 if entry.qkv_index is not None else 1
    if entry.form == "same":
        # Per-head biases are flattened in the checkpoint; the embedding keeps its shape.
        return shape if entry.jax_name == "text.embedding" else (fused * math.prod(shape),)
    if entry.form == "convolution":
        vision = config.vision
        return (shape[1], vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    inputs = _inputs(shape, entry)
    return (fused * math.prod(shape[inputs:]), math.prod(shape[:inputs]))


def _view(tensor: np.ndarray, entry: WeightEntry, shape: tuple[int, ...]) -> np.ndarray:
    """Return a view of a checkpoint tensor in the layout of the model; slicing it reads only the slice from disk."""
    if entry.qkv_index is not None:
        size = tensor.shape[0] // 3
        tensor = tensor[entry.qkv_index * size : (entry.qkv_index + 1) * size]
    if entry.form == "same":
        return tensor.reshape(shape)
    if entry.form == "convolution":
        return tensor.reshape(tensor.shape[0], -1).T
    inputs = _inputs(shape, entry)
    split = tensor.reshape(*shape[inputs:], *shape[:inputs])
    outputs = len(shape) - inputs
    return split.transpose(*range(outputs, len(shape)), *range(outputs))


def _to_hf_tensor(params: Params, parts: list[WeightEntry], config: ModelConfig) -> np.ndarray:
    """Assemble one checkpoint tensor on the host from the parameters that it stores."""
    pieces = []
    for entry in parts:
        array = params[entry.jax_name] if entry.layer is None else params[entry.jax_name][entry.layer]
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            from jax.experimental import multihost_utils

            array = multihost_utils.process_allgather(array, tiled=True)
        array = np.asarray(array)
        if entry.form == "kernel":
            inputs = _inputs(array.shape, entry)
            columns = math.prod(array.shape[:inputs])
            array = array.reshape(columns, -1).T
        elif entry.form == "convolution":
            array = array.T.reshape(_hf_shape(array.shape, entry, config))
        elif entry.jax_name != "text.embedding":
            array = array.reshape(-1)
        pieces.append(array)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
