"""A local OpenAI-compatible endpoint whose replies a function makes, for tests and measurements of clients."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RESET = "reset"  # a reply that closes the connection with a TCP reset


@dataclass
class Raw:
    """A response with any status, headers and body."""

    status: int
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


def completion(text: str | None, finish: str = "stop", prompt: int = 10, generated: int = 3, **fields: Any) -> dict:
    """Returns the body of a reply."""
    return {
        "model": "served-model",
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": finish} | fields],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    }


def error(status: int, message: str, **fields: str) -> Raw:
    """Returns an error as the API writes it."""
    return Raw(status, json.dumps({"error": {"message": message, "type": "invalid_request_error"} | fields}).encode())


class ChatServer:
    """Answers chat requests with `reply(body, number)`: text, a body (dict), a `Raw` response, or RESET.

    `requests` holds the bodies, `times` their times, `headers` their headers; `most_open` is the highest number of
    requests at the same time.
    """

    def __init__(
        self,
        reply: Callable[[dict, int], Any],
        models: tuple[str, ...] = ("served-model",),
        delay_s: float = 0,
        port: int = 0,  # 0: a free one
    ):
        self.requests: list[dict] = []
        self.times: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.open = self.most_open = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.send(Raw(200, json.dumps({"data": [{"id": name} for name in models]}).encode()))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server._lock:
                    number = len(server.requests)
                    server.requests.append(body)
                    server.times.append(time.monotonic())
                    server.headers.append(dict(self.headers))
                    server.open += 1
                    server.most_open = max(server.most_open, server.open)
                try:
                    time.sleep(delay_s)
                    answer = reply(body, number)
                    if answer == RESET:
                        linger = struct.pack("ii", 1, 0)
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                        self.close_connection = True
                        self.connection.close()
                        return
                finally:
                    with server._lock:
                        server.open -= 1
                if isinstance(answer, str):
                    answer = completion(answer)
                self.send(answer if isinstance(answer, Raw) else Raw(200, json.dumps(answer).encode()))

            def send(self, response):
                self.send_response(response.status)
                for name, value in {"Content-Length": str(len(response.body)), **response.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(response.body)

            def log_message(self, *_):
                pass

            def handle(self):
                try:
                    super().handle()
                except (OSError, ValueError):
                    pass  # the connection was reset, here or by a client that was killed

            def finish(self):
                try:
                    super().finish()
                except (OSError, ValueError):
                    pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self.server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
