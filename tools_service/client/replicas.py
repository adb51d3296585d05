"""The client's view of each replica: its channel, load and availability."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from tools_service.client import messages
from tools_service.client.messages import ExecRequest, Request
from tools_service.proto import tools_pb2 as pb
from tools_service.proto import tools_pb2_grpc

_MAX_CELL_S = 3600.0  # cap of a cell's time-out in the RPC deadline; the service refuses longer ones
_DEADLINE_SLACK_S = 60.0  # of the RPC deadline beyond the cells' time-outs: queueing, session start, transfer
_LOAD_TTL_S = 2.0  # validity of a replica's reported load
_COOLDOWN_S = 5.0  # time without new sessions for a replica that did not respond
_UNARY_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Tls:
    """PEM files: `ca` signed the services' certificates; `cert` and `key` are the client's own, for mutual TLS."""

    ca: str | Path
    cert: str | Path | None = None
    key: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files into gRPC channel credentials. Raises OSError."""
        ca, key, cert = (Path(path).read_bytes() if path else None for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)


class Replica:
    """One service process, with its channel and last reported load."""

    def __init__(self, address: str, server_name: str, token: str | None, tls: Tls | None):
        self.address = address
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        options: list[tuple[str, str | int]] = [
            ("grpc.max_receive_message_length", messages.MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", messages.MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.enable_http_proxy", 0),
        ]
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            options.append(("grpc.ssl_target_name_override", server_name))
            self._channel = grpc.aio.secure_channel(address, tls.credentials(), options=options)
        self._stub = tools_pb2_grpc.ToolsStub(self._channel)
        self._sent_digests: set[bytes] = set()  # digests of images already sent to it
        self.name = ""  # its own name, with a random suffix per start; empty: unknown
        self.down_until = 0.0
        self.new_sessions = 0  # sessions assigned since its load was reported
        self._info: dict = {}
        self._info_time = -_LOAD_TTL_S
        self._info_lock = asyncio.Lock()

    @property
    def load(self) -> float:
        """Fraction of its session limit in use."""
        return (self._info.get("sessions", 0) + self.new_sessions) / max(1, self._info.get("max_sessions", 1))

    def forget_name(self) -> None:
        self.name, self._info_time = "", -_LOAD_TTL_S

    def mark_down(self) -> None:
        self.down_until = time.monotonic() + _COOLDOWN_S
        self.forget_name()

    async def refresh(self) -> None:
        """Updates name and load if older than `_LOAD_TTL_S`. Raises AioRpcError."""
        async with self._info_lock:
            if time.monotonic() - self._info_time >= _LOAD_TTL_S or not self.name:
                self._update_info(await self.info(wait=False))

    def _update_info(self, info: dict) -> None:
        self._info, self._info_time, self.new_sessions = info, time.monotonic(), 0
        self.name = str(info.get("replica", ""))

    async def info(self, wait: bool = True) -> dict:
        """Returns the replica's info; `wait` waits for one that does not listen yet. Raises AioRpcError."""
        reply = await self._stub.GetInfo(
            pb.GetInfoRequest(), metadata=self._metadata, timeout=_UNARY_TIMEOUT_S, wait_for_ready=wait
        )
        return json.loads(reply.json)

    async def interrupt(self, session_id: str) -> bool:
        request = pb.InterruptRequest(session_id=session_id)
        return (await self._stub.Interrupt(request, metadata=self._metadata, timeout=_UNARY_TIMEOUT_S)).interrupted

    async def close_sessions(self, ids: Sequence[str]) -> None:
        try:
            request = pb.CloseSessionsRequest(session_ids=ids)
            await self._stub.CloseSessions(request, metadata=self._metadata, timeout=_UNARY_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            pass  # they expire by themselves

    def send_batch(
        self,
        requests: Sequence[Request],
        wire_ids: dict[str, tuple[str, bool]],
        missing_digests: set[bytes],
        format: str,
        request_timeout_s: float,
    ) -> grpc.aio.UnaryStreamCall:
        """Starts the RPC of a batch. `wire_ids` maps a request id to (session id on the wire, expects_state)."""
        if searches := [request for request in requests if not isinstance(request, ExecRequest)]:
            return self._stub.BatchSearch(
                messages.search_batch(searches),
                metadata=self._metadata,
                timeout=min(_DEADLINE_SLACK_S, request_timeout_s),
            )
        cells = [request for request in requests if isinstance(request, ExecRequest)]
        # Cells of one session run one after the other, so their times add up.
        deadline = sum(min(cell.timeout_s, _MAX_CELL_S) for cell in cells if cell.timeout_s > 0) + _DEADLINE_SLACK_S
        message = self.exec_batch(cells, wire_ids, missing_digests, format)
        return self._stub.BatchExec(message, metadata=self._metadata, timeout=min(deadline, request_timeout_s))

    def exec_batch(
        self,
        requests: Sequence[ExecRequest],
        wire_ids: dict[str, tuple[str, bool]],
        missing_digests: set[bytes],
        format: str,
    ) -> pb.BatchExecRequest:
        """Builds the message for these cells, with the images that the replica does not hold yet."""
        message = pb.BatchExecRequest()
        included: set[bytes] = set()
        for request in requests:
            session_id, expects_state = wire_ids[request.request_id]
            digests = [messages.image_digest(image) for image in request.images]
            message.items.add(
                request_id=request.request_id, session_id=session_id, code=request.code, timeout_s=request.timeout_s,
                image_digests=digests, expects_state=expects_state, image_format=pb.WEBP if format == "webp" else pb.PNG,
            )  # fmt: skip
            for key, image in zip(digests, request.images, strict=True):
                if key not in included and (key not in self._sent_digests or key in missing_digests):
                    included.add(key)
                    message.images.append(image)
        self._sent_digests |= included
        return message

    async def close(self) -> None:
        await self._channel.close()


async def resolve_addresses(addresses: str | Sequence[str]) -> list[tuple[str, str]]:
    """Returns (host:port, TLS server name) of every replica.

    A name with several addresses, such as a headless Kubernetes service, expands to one replica each.
    Raises ValueError for an address without a port.
    """
    found: list[tuple[str, str]] = []
    names = addresses.split(",") if isinstance(addresses, str) else addresses
    for name in (n.strip() for n in names):
        host, colon, port = name.rpartition(":")
        if not colon or not port.isdigit() or not host:
            raise ValueError(f"{name!r} is no address: write host:port, or several with commas between")
        try:
            rows = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError:  # not resolvable yet: gRPC resolves the name when it connects
            rows = []
        ips = list(dict.fromkeys(str(row[4][0]) for row in rows))
        if len(ips) < 2 or host == "localhost":
            found.append((name, host))
        else:
            found += [(f"[{p}]:{port}" if ":" in p else f"{p}:{port}", host) for p in ips]
    return list(dict.fromkeys(found))
