"""The replicas of the service as a client sees them: a channel each, who has room, who is gone."""

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

_MAX_MESSAGE = 64 << 20
_LONGEST_S = 3600.0  # of one cell, when a deadline is computed: the service refuses more anyway
_SPARE_S = 60.0  # beyond a cell's own time-out: queues, session start, transfer
_FRESH_S = 2.0  # what a replica said about its load is believed for so long
_DOWN_S = 5.0  # a replica that did not answer gets no new session for so long
_INFO_S = 10.0


@dataclass(frozen=True)
class Tls:
    """Files in PEM format. ``ca`` signed the services' certificates; ``cert`` and ``key`` are this client's own,
    for services that ask for one."""

    ca: str | Path
    cert: str | Path | None = None
    key: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises OSError for a file that cannot be read."""
        ca, key, cert = (Path(path).read_bytes() if path else None for path in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)


class Replica:
    """One service process."""

    def __init__(self, address: str, server_name: str, token: str | None, tls: Tls | None):
        self.address = address
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.enable_http_proxy", 0),
        ]
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            options.append(("grpc.ssl_target_name_override", server_name))
            self._channel = grpc.aio.secure_channel(address, tls.credentials(), options=options)
        self._stub = tools_pb2_grpc.ToolsStub(self._channel)
        self._known: set[bytes] = set()  # digests of pictures that it has been given
        self.name = ""  # as it calls itself; another one after a restart
        self.down_until = 0.0
        self.opened = 0  # sessions sent there since it told its load
        self._info: dict = {}
        self._asked = -_FRESH_S
        self._asking = asyncio.Lock()

    @property
    def load(self) -> float:
        """Part of its sessions that are taken."""
        return (self._info.get("sessions", 0) + self.opened) / max(1, self._info.get("max_sessions", 1))

    def forget_name(self) -> None:
        self.name, self._asked = "", -_FRESH_S

    def failed(self) -> None:
        self.down_until = time.monotonic() + _DOWN_S
        self.forget_name()

    async def refresh(self) -> None:
        """Learns name and load, unless that was a moment ago. Raises AioRpcError."""
        async with self._asking:
            if time.monotonic() - self._asked >= _FRESH_S or not self.name:
                self._learn(await self.info(wait=False))

    def _learn(self, info: dict) -> None:
        self._info, self._asked, self.opened = info, time.monotonic(), 0
        self.name = str(info.get("replica", ""))

    async def info(self, wait: bool = True) -> dict:
        """What it says of itself; ``wait``: for a replica that does not listen yet. Raises AioRpcError."""
        reply = await self._stub.GetInfo(
            pb.GetInfoRequest(), metadata=self._metadata, timeout=_INFO_S, wait_for_ready=wait
        )
        return json.loads(reply.json)

    async def interrupt(self, session_id: str) -> bool:
        request = pb.InterruptRequest(session_id=session_id)
        return (await self._stub.Interrupt(request, metadata=self._metadata, timeout=_INFO_S)).interrupted

    async def close_sessions(self, ids: Sequence[str]) -> None:
        try:
            request = pb.CloseSessionsRequest(session_ids=ids)
            await self._stub.CloseSessions(request, metadata=self._metadata, timeout=_INFO_S)
        except grpc.aio.AioRpcError:
            pass  # they expire by themselves

    def call(
        self,
        requests: Sequence[Request],
        wire: dict[str, tuple[str, bool]],
        resend: set[bytes],
        format: str,
        within_s: float,
    ) -> grpc.aio.UnaryStreamCall:
        """Sends a batch. ``wire``: request id → the session's id there, and whether it must exist."""
        if not isinstance(requests[0], ExecRequest):
            message = messages.search_batch(requests)
            return self._stub.BatchSearch(message, metadata=self._metadata, timeout=min(_SPARE_S, within_s))
        # Cells of one session run one after the other, so their times add up.
        deadline = sum(min(r.timeout_s, _LONGEST_S) for r in requests if r.timeout_s > 0) + _SPARE_S
        message = self.cells(requests, wire, resend, format)
        return self._stub.BatchExec(message, metadata=self._metadata, timeout=min(deadline, within_s))

    def cells(
        self, requests: Sequence[ExecRequest], wire: dict[str, tuple[str, bool]], resend: set[bytes], format: str
    ) -> pb.BatchExecRequest:
        """The message for these cells, with those pictures that the replica has not been given."""
        message = pb.BatchExecRequest()
        included: set[bytes] = set()
        for request in requests:
            session_id, known = wire[request.request_id]
            digests = [messages.digest(image) for image in request.images]
            message.items.add(
                request_id=request.request_id, session_id=session_id, code=request.code, timeout_s=request.timeout_s,
                image_digests=digests, expects_state=known, image_format=pb.WEBP if format == "webp" else pb.PNG,
            )  # fmt: skip
            for key, image in zip(digests, request.images, strict=True):
                if key not in included and (key not in self._known or key in resend):
                    included.add(key)
                    message.images.append(image)
        self._known |= included
        return message

    async def close(self) -> None:
        await self._channel.close()


async def resolve(addresses: str | Sequence[str]) -> list[tuple[str, str]]:
    """(host:port, host as named) of every replica: a name with several addresses, as a headless Kubernetes
    service has, stands for as many. Raises ValueError for an address without a port."""
    found: list[tuple[str, str]] = []
    names = addresses.split(",") if isinstance(addresses, str) else addresses
    for name in (n.strip() for n in names):
        host, colon, port = name.rpartition(":")
        if not colon or not port.isdigit() or not host:
            raise ValueError(f"{name!r} is no address: write host:port, or several with commas between")
        try:
            rows = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError:  # it may come up later; gRPC then finds it by name
            rows = []
        points = list(dict.fromkeys(row[4][0] for row in rows))
        if len(points) < 2 or host == "localhost":
            found.append((name, host))
        else:
            found += [(f"[{p}]:{port}" if ":" in p else f"{p}:{port}", host) for p in points]
    return list(dict.fromkeys(found))
