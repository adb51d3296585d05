"""``python -m tools_service.cli.shell``: a session by hand. Pictures that a cell shows are saved to files.

Without ``--address`` it starts a service of its own. A cell ends with an empty line, or at once where one line is
complete; Ctrl-C interrupts a running cell, Ctrl-D ends the session. Input that is not a terminal is run as cells
separated by lines that start with ``# %%``. Beside Python it knows:

    :search WORDS     text search          :similar FILE     image search
    :restart          a fresh session      :info             what the service says of itself
"""

from __future__ import annotations

import argparse
import ast
import codeop
import itertools
import json
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from tools_service.client import (
    ExecRequest,
    ImageSearchRequest,
    Request,
    Status,
    TextSearchRequest,
    Tls,
    ToolResult,
    ToolsClient,
    start_local_service,
)

_POLL_S = 0.2
_MARK = "# %%"
_SUFFIXES = {b"\x89PNG": ".png", b"RIFF": ".webp"}


class Shell:
    """One session at a time, and what is shown of it."""

    def __init__(self, client: ToolsClient, images: tuple[bytes, ...], folder: Path, timeout_s: float, say: Callable):
        """``images`` are bound to image_1 .. image_n, pictures that come back go to ``folder``, text to ``say``."""
        self._client, self._images, self._folder, self._timeout_s, self._say = client, images, folder, timeout_s, say
        self._saved = itertools.count(1)
        self.failed = False  # the last cell did not end well
        self._fresh()

    def _fresh(self) -> None:
        self.session = f"shell-{uuid.uuid4().hex}"

    def cell(self, source: str) -> None:
        """Runs Python, or does what a line that starts with a colon says."""
        if not source.strip():
            return
        if source.lstrip().startswith(":"):
            self._command(*source.strip()[1:].partition(" ")[::2])
            return
        request = ExecRequest(uuid.uuid4().hex, self.session, source, self._timeout_s, self._images)
        result = self._wait(request)
        self.failed = result.status is not Status.OK
        for text in (result.stdout, result.stderr):
            if text:
                self._say(text.rstrip("\n"))
        for data, size in zip(result.images, result.image_sizes, strict=True):
            path = self._folder / f"picture_{next(self._saved):03d}{_SUFFIXES[data[:4]]}"
            path.write_bytes(data)
            self._say(f"[{size[0]} x {size[1]} pixels: {path}]")
        if result.message:
            self._say(f"[{result.status.value}: {result.message}]")
        if result.status is Status.SESSION_LOST:
            self._fresh()

    def _wait(self, request: Request) -> ToolResult:
        """The result; Ctrl-C meanwhile interrupts the cell."""
        self._client.submit([request])
        while True:
            try:
                if results := self._client.poll(_POLL_S):
                    return results[0]
            except KeyboardInterrupt:
                self._client.interrupt(self.session)

    def _command(self, name: str, rest: str) -> None:
        if name == "search" and rest:
            self._found(self._wait(TextSearchRequest(uuid.uuid4().hex, rest, 5)))
        elif name == "similar" and rest:
            try:
                data = Path(rest.strip()).read_bytes()
            except OSError as error:
                self._say(f"[{rest.strip()}: {error.strerror}]")
                return
            self._found(self._wait(ImageSearchRequest(uuid.uuid4().hex, data, 5)))
        elif name == "restart":
            self.close()
            self._fresh()
            self._say("[a fresh session]")
        elif name == "info":
            self._say(json.dumps(self._client.info(), indent=1))
        else:
            self._say("[:search WORDS, :similar FILE, :restart, :info]")

    def _found(self, result: ToolResult) -> None:
        self.failed = result.status is not Status.OK
        if result.message:
            self._say(f"[{result.status.value}: {result.message}]")
        for number, item in enumerate(result.items, start=1):
            self._say(f"{number}. {item.title}  {item.url}\n   {item.snippet}")

    def close(self) -> None:
        self._client.close_sessions([self.session])


def cells_of(text: str) -> Iterator[str]:
    """The cells of a script: parts between lines that start with ``# %%``."""
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if line.startswith(_MARK):
            yield "".join(lines)
            lines = []
        else:
            lines.append(line)
    yield "".join(lines)


def complete(lines: list[str]) -> bool:
    """Whether these lines are a cell: a command, one whole statement, a block that ends with an empty line, or
    something that no further line can mend."""
    source = "\n".join(lines)
    if lines[0].startswith(":"):
        return True
    compiler = codeop.CommandCompiler()
    compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        return compiler(source, "cell", "single") is not None
    except (SyntaxError, ValueError, OverflowError):
        return len(lines) == 1 or not lines[-1].strip()  # more statements than one: an empty line ends them


def _typed() -> Iterator[str]:
    """Cells as they are typed, until the end of input."""
    for number in itertools.count(1):
        lines: list[str] = []
        while not lines or not complete(lines):
            try:
                lines.append(input(f"In [{number}]: " if not lines else "   ...: "))
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                lines = []
        yield "\n".join(lines)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools_service.cli.shell",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--address", default="", help="host:port of a service; empty: start one here")
    parser.add_argument("--token-file", default="", help="file with the bearer token of that service")
    parser.add_argument("--tls-ca", default="", help="PEM file: authority that signed the service's certificate")
    parser.add_argument("--tls-cert", default="", help="PEM file: certificate of this client; with --tls-key")
    parser.add_argument("--tls-key", default="", help="PEM file: its private key")
    parser.add_argument("--image", action="append", default=[], help="picture bound to image_1, image_2 and so on")
    parser.add_argument("--output", default="", help="folder for pictures; empty: a new one below the temporary folder")
    parser.add_argument("--image-format", choices=("png", "webp"), default="png")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="of one cell")
    parser.add_argument("service", nargs="*", help="after --: options of the service that is started here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """1 if the last cell of a script failed, else 0."""
    options = _parse(argv)
    folder = Path(options.output or tempfile.mkdtemp(prefix="tools-shell-"))
    service = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        images = tuple(Path(path).read_bytes() for path in options.image)
        token = Path(options.token_file).read_text().strip() if options.token_file else None
        tls = Tls(options.tls_ca, options.tls_cert or None, options.tls_key or None) if options.tls_ca else None
        if not options.address:
            service = start_local_service(log_path=folder / "service.log", extra_args=options.service)
            print("\n".join(service.banner), file=sys.stderr)
        address = options.address or service.address
        client = ToolsClient(address, token, tls, options.image_format)
    except (OSError, RuntimeError, ValueError) as error:
        if service is not None:
            service.stop()
        print(f"error: {error}", file=sys.stderr)
        return 2
    shell = Shell(client, images, folder, options.timeout_s, print)
    try:
        if sys.stdin.isatty():
            signal.signal(signal.SIGINT, signal.default_int_handler)  # also where our parent ignores it
            import readline  # noqa: F401  (history and editing of what is typed)

            print(f"pictures go to {folder}; :help says what else there is", file=sys.stderr)
            for source in _typed():
                shell.cell(source)
            return 0
        for source in cells_of(sys.stdin.read()):
            shell.cell(source)
        return int(shell.failed)
    except ConnectionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        shell.close()
        client.close()
        if service is not None:
            service.stop()


if __name__ == "__main__":
    sys.exit(main())
