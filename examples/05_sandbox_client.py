"""Uses the tools service on its own: runs code in a sandboxed session, gets images back, and searches.

    python examples/05_sandbox_client.py

Only `tools_service` is imported, which needs no JAX. With a service on another machine, pass its address and token to
`ToolsClient` instead of starting one.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tools_service.client import ExecRequest, Status, TextSearchRequest, ToolResult, ToolsClient, start_local_service

DOCUMENTS = [
    {"title": "Quito", "url": "https://example.org/quito", "text": "Quito is the capital of Ecuador."},
    {"title": "Oslo", "url": "https://example.org/oslo", "text": "Oslo is the capital of Norway."},
]
CODE = """
from PIL import Image
image = Image.new("RGB", (64, 48), "navy")
display(image)
print("drawn:", image.size)
"""


def run(client: ToolsClient, request) -> ToolResult:
    """Submits one request and waits for its result. A program with many requests submits all, then polls."""
    client.submit([request])
    while not (results := client.poll(timeout_s=1.0)):
        pass
    return results[0]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus.jsonl"
        corpus.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
        index = [
            sys.executable,
            "-m",
            "tools_service.cli.index",
            "text",
            str(corpus),
            "--output",
            str(folder / "index"),
        ]
        subprocess.run(index, check=True)

        service = start_local_service(text_index=folder / "index", log_path=folder / "service.log")
        client = ToolsClient(service.address)
        try:
            print("isolation tier:", client.info()["tier"])

            drawn = run(client, ExecRequest("r1", "session-a", CODE, timeout_s=10))
            print(drawn.status.name, drawn.stdout.strip(), f"{len(drawn.images)} image of {len(drawn.images[0])} bytes")

            # Variables persist in a session, and no other session sees them.
            print(run(client, ExecRequest("r2", "session-a", "image.size", timeout_s=10)).stdout.strip())
            other = run(client, ExecRequest("r3", "session-b", "image.size", timeout_s=10))
            assert other.status is Status.ERROR
            print(other.stderr.strip().splitlines()[-1])

            # There is no network in a session.
            blocked = run(client, ExecRequest("r4", "session-a", "import socket; socket.socket()", timeout_s=10))
            assert blocked.status is Status.ERROR
            print(blocked.stderr.strip().splitlines()[-1])

            # A cell that takes too long ends; the session's next cell runs in a new process.
            print(run(client, ExecRequest("r5", "session-a", "while True: pass", timeout_s=1)).status.name)

            found = run(client, TextSearchRequest("r6", "capital of Norway", k=1))
            print([item.title for item in found.items])
        finally:
            client.close()
            service.stop()


if __name__ == "__main__":
    main()
