"""Safetensors files: memory-mapped reading and streamed writing, one tensor at a time.

The format is eight bytes of header length, a JSON header (name → dtype, shape, byte offsets), then the tensors. The
library `safetensors` is not used: its writer needs all tensors in memory at once, its numpy reader copies a tensor
before it can be reshaped and transposed (here a device reads only its shard from the mapped file), and it cannot release
resident pages of the mapping. The tests use it as the oracle.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from dv2_jax.config import UserError

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


class WeightsFileError(UserError, ValueError):
    """A safetensors file cannot be read; the message names it and the reason."""


class MappedFile:
    """The tensors of a file as read-only views of its memory map."""

    def __init__(self, file: Path):
        """Map the file and parse its header.

        Raises:
            WeightsFileError: the file is truncated or has another format or an unsupported dtype; the message names it.
        """
        with file.open("rb") as stream:
            start = stream.read(8)
            if start == b"version ":
                raise WeightsFileError(f"{file} is a pointer of Git LFS, not the weights: run git lfs pull")
            length = int.from_bytes(start, "little")
            try:
                header = json.loads(stream.read(length))
                header.pop("__metadata__", None)
                needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
            except (ValueError, OverflowError, MemoryError, KeyError, TypeError, AttributeError) as error:
                raise WeightsFileError(f"{file} is no safetensors file, or a truncated one: {error}") from None
            size = file.stat().st_size
            if size < needed:
                raise WeightsFileError(f"{file} is truncated: it has {size:,} of {needed:,} bytes; download it again")
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.tensors: dict[str, np.ndarray] = {}
        for name, entry in header.items():
            if entry["dtype"] not in _DTYPES:
                raise WeightsFileError(f"{file}: {name} has dtype {entry['dtype']}; there are {', '.join(_DTYPES)}")
            begin, end = entry["data_offsets"]
            data = np.frombuffer(self._map, np.uint8, end - begin, 8 + length + begin)
            self.tensors[name] = data.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])

    def release(self) -> None:
        """Release the resident pages of the mapping (MADV_DONTNEED); later reads fetch from the file again."""
        self._map.madvise(mmap.MADV_DONTNEED)


def write_safetensors(
    stream: BinaryIO, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, tensors: Iterable[np.ndarray]
) -> None:
    """Write a file of tensors of one dtype, streamed in the order of `shapes`.

    Raises:
        ValueError: a tensor has another shape or dtype than announced.
    """
    dtype, begin = np.dtype(dtype), 0
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    for name, shape in shapes.items():
        end = begin + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
        if tensor.shape != tuple(shape) or tensor.dtype != dtype:
            raise ValueError(f"{name} is {tensor.dtype}{list(tensor.shape)}, announced as {dtype}{list(shape)}")
        stream.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
