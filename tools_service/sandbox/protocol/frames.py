"""Frames messages between the server and a session process: length-prefixed JSON plus raw bytes.

A frame is `u32 header length | u32 payload length | header | payload`. The header is a JSON object whose `blobs`
lists the lengths of the byte strings in the payload. Nothing is unpickled, and every length is checked against a
limit before anything is read. Input images are passed as descriptors of sealed memfds, attached to the first byte,
so they are not copied.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence

PREFIX = struct.Struct("!II")
MAX_HEADER = 64 * 1024


class FrameError(Exception):
    """The received bytes are not a valid frame."""


def encode(header: dict, blobs: Sequence[bytes] = ()) -> list[bytes]:
    """Returns the byte strings to write, in order; blobs are not copied."""
    text = json.dumps(header | {"blobs": [len(b) for b in blobs]}, allow_nan=False).encode()
    return [PREFIX.pack(len(text), sum(len(b) for b in blobs)) + text, *blobs]


def parse_prefix(prefix: bytes, max_payload: int) -> tuple[int, int]:
    """Returns the header and payload lengths. Raises FrameError if one exceeds its limit."""
    header, payload = PREFIX.unpack(prefix)
    if not 0 < header <= MAX_HEADER or payload > max_payload:
        raise FrameError(f"frame of {header}+{payload} bytes; the limits are {MAX_HEADER}+{max_payload}")
    return header, payload


def decode(header: bytes, payload: bytes) -> tuple[dict, list[bytes]]:
    """Returns the header and the blobs. Raises FrameError for anything that `encode` would not write."""
    try:
        parsed = json.loads(header, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"header is not JSON: {type(error).__name__}") from None
    sizes = parsed.pop("blobs", None) if isinstance(parsed, dict) else None
    if not isinstance(sizes, list) or not all(type(s) is int and s >= 0 for s in sizes) or sum(sizes) != len(payload):
        raise FrameError("blob lengths do not add up to the payload")
    blobs, start = [], 0
    for size in sizes:
        blobs.append(payload[start : start + size])
        start += size
    return parsed, blobs


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def read(descriptor: int, max_payload: int, _read=os.read) -> tuple[dict, list[bytes]] | None:
    """Reads the next frame from a blocking descriptor; None at end of file."""
    prefix = _read_exactly(descriptor, PREFIX.size, _read)
    if prefix is None:
        return None
    header_size, payload_size = parse_prefix(prefix, max_payload)
    header = _read_exactly(descriptor, header_size, _read)
    payload = _read_exactly(descriptor, payload_size, _read)
    return None if header is None or payload is None else decode(header, payload)


def receive(channel: socket.socket, max_payload: int, max_fds: int) -> tuple[dict, list[bytes], list[int]] | None:
    """Reads the next frame and its attached descriptors from a blocking socket; None at end of stream."""
    prefix, ancillary, _, _ = channel.recvmsg(PREFIX.size, socket.CMSG_SPACE(4 * max_fds), socket.MSG_WAITALL)
    fds = received_fds(ancillary)
    if len(prefix) < PREFIX.size:
        return None
    header_size, payload_size = parse_prefix(prefix, max_payload)
    header = _read_exactly(channel.fileno(), header_size, os.read)
    payload = _read_exactly(channel.fileno(), payload_size, os.read)
    return None if header is None or payload is None else (*decode(header, payload), fds)


def received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Returns the file descriptors in a message's ancillary data (SCM_RIGHTS)."""
    found = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
    return list(found)


def write(descriptor: int, header: dict, blobs: Sequence[bytes] = (), _write=os.write) -> None:
    """Writes a complete frame to a blocking descriptor."""
    for part in encode(header, blobs):
        view = memoryview(part)
        while view:
            view = view[_write(descriptor, view) :]


def _read_exactly(descriptor: int, size: int, _read) -> bytes | None:
    parts = []
    while size:
        part = _read(descriptor, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
