"""A local OpenAI-compatible endpoint that plays back replies, for tests of the judge."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class JudgeEndpoint:
    """Serves (status, content) pairs in order; the last one repeats. `models`: the listed ids, or a status code."""

    def __init__(self, *replies: tuple[int, str], models: list[str] | int = ("served-model",)):
        self.replies, self.requests, self.models = list(replies), [], models
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                endpoint.requests.append(self.path)
                if isinstance(endpoint.models, int):
                    return self.send(endpoint.models, {})
                self.send(200, {"data": [{"id": name} for name in endpoint.models]})

            def do_POST(self):
                endpoint.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                replies = endpoint.replies
                status, content = replies.pop(0) if len(replies) > 1 else replies[0]
                self.send(status, {"choices": [{"message": {"content": content}}]})

            def send(self, status, value):
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
