"""Runs a local HTTP server with scripted replies: valid, malformed, endless or none."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

Responder = Callable[["SiteHandler"], None]


@dataclass(frozen=True)
class SeenRequest:
    """One received request."""

    at: float  # time.monotonic()
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class SiteHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.site.record(
            SeenRequest(time.monotonic(), self.command, parts.path, dict(parse_qsl(parts.query)), headers, body)
        )
        try:
            answer(self)
        except OSError:
            self.site.hung_up.set()
            self.close_connection = True

    do_POST = do_GET

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


class Site:
    """Replies to requests with `answers` in order; the last one repeats."""

    def __init__(self, *answers: Responder, tls: ssl.SSLContext | None = None):
        self.answers = list(answers)
        self.requests: list[SeenRequest] = []
        self.hung_up = threading.Event()  # set when a client closed a connection during a reply
        self.closing = threading.Event()
        self.sent = 0  # bytes of endless bodies
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("_BoundHandler", (SiteHandler,), {"site": self}))
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.port = self._server.server_address[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"

    def record(self, request: SeenRequest) -> Responder:
        with self._lock:
            self.requests.append(request)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def replies_with(value, status: int = 200, packed: bool = False, **headers: str) -> Responder:
    """Returns a responder that sends `value` as JSON, or bytes unchanged. Underscores in header names become hyphens."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    named = {"content-type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
    if packed:
        body, named = gzip.compress(body), named | {"content-encoding": "gzip"}
    return lambda handler: handler.reply(status, named, body)


def hang(handler: SiteHandler) -> None:
    """Sends no reply."""
    handler.site.closing.wait(60)


def reset(handler: SiteHandler) -> None:
    """Sends half a reply, then resets the connection."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def drip(handler: SiteHandler) -> None:
    """Sends one byte at a time, without end."""
    _endless(handler, iter(lambda: b" ", None), pause_s=0.05)


def flood(handler: SiteHandler) -> None:
    """Sends a body without end."""
    _endless(handler, iter(lambda: b" " * 65536, None))


def bomb(handler: SiteHandler) -> None:
    """Sends a gzip bomb of 512 MB, a thousand times its compressed size."""
    packer = zlib.compressobj(9, wbits=31)
    _endless(handler, (packer.compress(bytes(1 << 20)) for _ in range(512)), encoding="gzip")


def _endless(handler: SiteHandler, parts, encoding: str = "identity", pause_s: float = 0.0) -> None:
    handler.send_response(200)
    handler.send_header("transfer-encoding", "chunked")
    handler.send_header("content-encoding", encoding)
    handler.end_headers()
    for part in parts:
        if handler.site.closing.wait(pause_s) if pause_s else handler.site.closing.is_set():
            break
        if part:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            handler.site.sent += len(part)
    handler.close_connection = True
