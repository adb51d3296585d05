"""Messages between server, manager and zygote: one JSON object per packet, with file descriptors attached."""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Sequence

from tools_service.sandbox.protocol import frames

MAX_MESSAGE_BYTES = 1 << 16
MAX_MESSAGE_FDS = 16


def send_message(channel: socket.socket, message: dict, fds: Sequence[int] = ()) -> None:
    """Sends one JSON message with file descriptors attached (SCM_RIGHTS). Raises OSError."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([json.dumps(message).encode()], ancillary)


def receive_message(channel: socket.socket) -> tuple[dict | None, list[int]]:
    """Returns one message and the file descriptors attached to it; None for the message at end of stream."""
    data, ancillary, _, _ = channel.recvmsg(MAX_MESSAGE_BYTES, socket.CMSG_SPACE(4 * MAX_MESSAGE_FDS))
    return json.loads(data) if data else None, frames.received_fds(ancillary)
