"""A local HTTP server that answers as a test wants: well, badly, or not at all."""

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

Answer = Callable[["Handler"], None]


@dataclass(frozen=True)
class Seen:
    """One request that arrived."""

    at: float  # time.monotonic()
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.site.saw(
            Seen(time.monotonic(), self.command, parts.path, dict(parse_qsl(parts.query)), headers, body)
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
    """Answers requests in the order of ``answers``; the last one goes on for ever."""

    def __init__(self, *answers: Answer, tls: ssl.SSLContext | None = None):
        self.answers = list(answers)
        self.seen: list[Seen] = []
        self.hung_up = threading.Event()  # a client ended a connection while it was being answered
        self.closing = threading.Event()
        self.sent = 0  # bytes of endless bodies
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("_Handler", (Handler,), {"site": self}))
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.port = self._server.server_address[1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"

    def saw(self, request: Seen) -> Answer:
        with self._lock:
            self.seen.append(request)
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


def says(value, status: int = 200, packed: bool = False, **headers: str) -> Answer:
    """A reply of JSON, or of bytes as they are. Underscores in header names are hyphens."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    named = {"content-type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
    if packed:
        body, named = gzip.compress(body), named | {"content-encoding": "gzip"}
    return lambda handler: handler.reply(status, named, body)


def hang(handler: Handler) -> None:
    """No answer at all."""
    handler.site.closing.wait(60)


def reset(handler: Handler) -> None:
    """Half an answer, then the connection breaks."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """One byte at a time, for ever."""
    _endless(handler, iter(lambda: b" ", None), pause_s=0.05)


def flood(handler: Handler) -> None:
    """A body without end."""
    _endless(handler, iter(lambda: b" " * 65536, None))


def bomb(handler: Handler) -> None:
    """Gzip that unpacks to a thousand times its size, 512 MB in all."""
    packer = zlib.compressobj(9, wbits=31)
    _endless(handler, (packer.compress(bytes(1 << 20)) for _ in range(512)), encoding="gzip")


def _endless(handler: Handler, parts, encoding: str = "identity", pause_s: float = 0.0) -> None:
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
