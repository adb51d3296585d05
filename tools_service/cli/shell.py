"""`python -m tools_service.cli.shell`: an interactive session. Displayed images are saved to files.

Without `--address` it starts a local service. A cell ends with an empty line, or at once if its first line is
complete; Ctrl-C interrupts a running cell, Ctrl-D ends the session. Input that is not a terminal is run as cells
separated by lines that start with `# %%`. Commands in addition to Python:

    :search WORDS     text search          :similar FILE     image search
    :restart          a fresh session      :info             isolation, limits and load of the service
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


class Repl:
    """Read-eval-print loop over one session at a time."""

    def __init__(self, client: ToolsClient, images: tuple[bytes, ...], folder: Path, timeout_s: float, write: Callable):
        """Binds `images` to image_1 .. image_n; saves displayed images to `folder` and passes text to `write`."""
        self._client, self._images, self._folder, self._timeout_s, self._write = (
            client,
            images,
            folder,
            timeout_s,
            write,
        )
        self._saved = itertools.count(1)
        self.failed = False  # the last cell did not end with OK
        self._new_session()

    def _new_session(self) -> None:
        self.session = f"shell-{uuid.uuid4().hex}"

    def run_cell(self, source: str) -> None:
        """Runs Python code, or the command of a line that starts with a colon."""
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
                self._write(text.rstrip("\n"))
        for data, size in zip(result.images, result.image_sizes, strict=True):
            path = self._folder / f"image_{next(self._saved):03d}{_SUFFIXES[data[:4]]}"
            path.write_bytes(data)
            self._write(f"[{size[0]} x {size[1]} pixels: {path}]")
        if result.message:
            self._write(f"[{result.status.value}: {result.message}]")
        if result.status is Status.SESSION_LOST:
            self._new_session()

    def _wait(self, request: Request) -> ToolResult:
        """Waits for the result; Ctrl-C interrupts the running cell."""
        self._client.submit([request])
        while True:
            try:
                if results := self._client.poll(_POLL_S):
                    return results[0]
            except KeyboardInterrupt:
                self._client.interrupt(self.session)

    def _command(self, name: str, rest: str) -> None:
        if name == "search" and rest:
            self._write_results(self._wait(TextSearchRequest(uuid.uuid4().hex, rest, 5)))
        elif name == "similar" and rest:
            try:
                data = Path(rest.strip()).read_bytes()
            except OSError as error:
                self._write(f"[{rest.strip()}: {error.strerror}]")
                return
            self._write_results(self._wait(ImageSearchRequest(uuid.uuid4().hex, data, 5)))
        elif name == "restart":
            self.close()
            self._new_session()
            self._write("[a fresh session]")
        elif name == "info":
            self._write(json.dumps(self._client.info(), indent=1))
        else:
            self._write("[:search WORDS, :similar FILE, :restart, :info]")

    def _write_results(self, result: ToolResult) -> None:
        self.failed = result.status is not Status.OK
        if result.message:
            self._write(f"[{result.status.value}: {result.message}]")
        for number, item in enumerate(result.items, start=1):
            self._write(f"{number}. {item.title}  {item.url}\n   {item.snippet}")

    def close(self) -> None:
        self._client.close_sessions([self.session])


def split_script(text: str) -> Iterator[str]:
    """Yields the cells of a script, which are separated by lines that start with `# %%`."""
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        if line.startswith(_MARK):
            yield "".join(lines)
            lines = []
        else:
            lines.append(line)
    yield "".join(lines)


def is_complete(lines: list[str]) -> bool:
    """Returns True if these lines form a cell: a command, a complete statement, a block that ends with an empty
    line, or a syntax error that no further line can fix."""
    source = "\n".join(lines)
    if lines[0].startswith(":"):
        return True
    compiler = codeop.CommandCompiler()
    compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        return compiler(source, "cell", "single") is not None
    except (SyntaxError, ValueError, OverflowError):
        return len(lines) == 1 or not lines[-1].strip()  # more statements than one: an empty line ends them


def _read_terminal() -> Iterator[str]:
    """Yields cells typed at the terminal until the end of input."""
    for number in itertools.count(1):
        lines: list[str] = []
        while not lines or not is_complete(lines):
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
    parser.add_argument("--image", action="append", default=[], help="image bound to image_1, image_2 and so on")
    parser.add_argument("--output", default="", help="folder for displayed images; empty: a new temporary folder")
    parser.add_argument("--image-format", choices=("png", "webp"), default="png")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="time-out of one cell")
    parser.add_argument("service", nargs="*", help="after --: options of the service that is started here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs a script from stdin or an interactive session; returns 1 if the last cell of the script failed."""
    options = _parse(argv)
    folder = Path(options.output or tempfile.mkdtemp(prefix="tools-shell-"))
    service = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        images = tuple(Path(path).read_bytes() for path in options.image)
        token = Path(options.token_file).read_text().strip() if options.token_file else None
        tls = Tls(options.tls_ca, options.tls_cert or None, options.tls_key or None) if options.tls_ca else None
        address = options.address
        if not address:
            service = start_local_service(log_path=folder / "service.log", extra_args=options.service)
            print("\n".join(service.banner), file=sys.stderr)
            address = service.address
        client = ToolsClient(address, token, tls, options.image_format)
    except (OSError, RuntimeError, ValueError) as error:
        if service is not None:
            service.stop()
        print(f"error: {error}", file=sys.stderr)
        return 2
    repl = Repl(client, images, folder, options.timeout_s, print)
    try:
        if sys.stdin.isatty():
            signal.signal(
                signal.SIGINT, signal.default_int_handler
            )  # restores Ctrl-C if the parent process ignores SIGINT
            import readline  # noqa: F401  (line editing and history)

            print(f"images are saved to {folder}; :help lists the commands", file=sys.stderr)
            for source in _read_terminal():
                repl.run_cell(source)
            return 0
        for source in split_script(sys.stdin.read()):
            repl.run_cell(source)
        return int(repl.failed)
    except ConnectionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        repl.close()
        client.close()
        if service is not None:
            service.stop()


if __name__ == "__main__":
    sys.exit(main())
