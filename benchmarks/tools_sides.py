"""The two sides of the benchmark behind one interface: sessions of the tools service, and Jupyter kernels."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

from benchmarks import processes
from tools_service.client import ExecRequest, LocalService, Status, ToolsClient
from tools_service.proto import tools_pb2 as pb
from tools_service.proto import tools_pb2_grpc

IMPORTS = "import cv2, matplotlib.pyplot, numpy, pandas, PIL.Image, scipy.ndimage, skimage, sympy"
_TIMEOUT_S = 120.0


class BenchmarkError(Exception):
    """A cell of the benchmark failed or timed out."""


@dataclass(frozen=True)
class CellOutput:
    """The output of a cell."""

    stdout: str
    images: tuple[bytes, ...]


class ServiceSide:
    """Sessions of a running service: single cells by the unary call, many by the client library in batches."""

    name = "tools service"

    def __init__(self, service: LocalService):
        self._server = service.process.pid
        self._numbers = itertools.count()
        self._channel = grpc.insecure_channel(service.address, options=[("grpc.max_receive_message_length", 64 << 20)])
        self._stub = tools_pb2_grpc.ToolsStub(self._channel)
        self._client = ToolsClient(service.address)
        self._images: dict[str, tuple[bytes, ...]] = {}

    def open(self, imports: str = IMPORTS) -> str:
        """Opens a new session with the libraries imported."""
        session = f"benchmark-{next(self._numbers)}"
        self.run(session, imports)
        return session

    def run(self, session: str, code: str) -> CellOutput:
        reply = self._stub.Exec(
            pb.ExecRequest(request_id=f"b{next(self._numbers)}", session_id=session, code=code, timeout_s=60),
            timeout=_TIMEOUT_S,
        )
        if reply.status != pb.OK:
            raise BenchmarkError(f"{pb.Status.Name(reply.status)}: {reply.message or reply.stderr}")
        return CellOutput(reply.stdout, tuple(reply.images))

    def bind(self, session: str, image: bytes) -> None:
        """Binds an image to `image_1` of a new session."""
        self._images[session] = (image,)
        self.run_all([session], [["image_1.load()\nNone"]])

    def run_all(self, sessions: Sequence[str], codes: Sequence[Sequence[str]]) -> list[CellOutput]:
        """Runs all cells as one batch, in order within each session."""
        requests = [
            ExecRequest(f"b{next(self._numbers)}", session, code, 60.0, self._images.get(session, ()))
            for row in itertools.zip_longest(*codes)
            for session, code in zip(sessions, row, strict=True)
            if code is not None
        ]
        self._client.submit(requests)
        results = []
        deadline = time.monotonic() + _TIMEOUT_S
        while len(results) < len(requests):
            results += self._client.poll(1.0)
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{len(results)} of {len(requests)} cells after {_TIMEOUT_S:g} s")
        if wrong := [result for result in results if result.status is not Status.OK]:
            raise BenchmarkError(f"{wrong[0].status.name}: {wrong[0].message or wrong[0].stderr}")
        return [CellOutput(result.stdout, result.images) for result in results]

    def cpu_ms(self) -> float:
        """Returns the CPU time used so far by the service, its sessions and this client, ms."""
        found = processes.roles(self._server)
        return processes.cpu_ms((found.server, found.manager, found.zygote, *found.others, os.getpid()))

    def private_mb(self, sessions: Sequence[str]) -> float:
        """Returns the mean private memory of these sessions, 10⁶ bytes. Ends them, to identify their processes."""
        sizes = {pid: processes.private_mb(pid) for pid in processes.roles(self._server).others}
        self.close(sessions)
        deadline = time.monotonic() + 30
        while len(gone := sizes.keys() - set(processes.roles(self._server).others)) < len(sessions):
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{len(gone)} of {len(sessions)} session processes ended")
            time.sleep(0.05)
        return sum(sizes[pid] for pid in gone) / len(sessions)

    def close(self, sessions: Sequence[str]) -> None:
        self._stub.CloseSessions(pb.CloseSessionsRequest(session_ids=sessions), timeout=_TIMEOUT_S)

    def stop(self) -> None:
        self._client.close()
        self._channel.close()


@dataclass(eq=False)
class Kernel:
    manager: AsyncKernelManager
    client: AsyncKernelClient


class KernelSide:
    """ipykernel processes, each with its own jupyter_client, on one event loop."""

    name = "Jupyter kernels"

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._open: set[Kernel] = set()

    def open(self, imports: str = IMPORTS) -> Kernel:
        return self._loop.run_until_complete(self._start(imports))

    def open_many(self, count: int, at_once: int = 4) -> list[Kernel]:
        """Starts `count` kernels, `at_once` at a time."""

        async def start() -> list[Kernel]:
            found: list[Kernel] = []
            while len(found) < count:
                some = min(at_once, count - len(found))
                found += await asyncio.gather(*(self._start(IMPORTS) for _ in range(some)))
            return found

        return self._loop.run_until_complete(start())

    async def _start(self, imports: str) -> Kernel:
        manager = AsyncKernelManager(kernel_name="python3")
        await manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        client = manager.client()
        client.start_channels()
        kernel = Kernel(manager, client)
        self._open.add(kernel)
        await client.wait_for_ready(timeout=_TIMEOUT_S)
        await self._run(kernel, imports)
        return kernel

    def run(self, kernel: Kernel, code: str) -> CellOutput:
        return self._loop.run_until_complete(self._run(kernel, code))

    async def _run(self, kernel: Kernel, code: str) -> CellOutput:
        asked = kernel.client.execute(code)
        text: list[str] = []
        images: list[bytes] = []
        while True:
            message = await kernel.client.get_iopub_msg(timeout=_TIMEOUT_S)
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                text.append(content["text"])
            elif kind in ("execute_result", "display_data"):
                text.append(content["data"].get("text/plain", ""))
                if "image/png" in content["data"]:
                    images.append(base64.b64decode(content["data"]["image/png"]))
            elif kind == "error":
                raise BenchmarkError("\n".join(content["traceback"]))
            elif kind == "status" and content["execution_state"] == "idle":
                break
        while (await kernel.client.get_shell_msg(timeout=_TIMEOUT_S))["parent_header"].get("msg_id") != asked:
            pass
        return CellOutput("".join(text), tuple(images))

    def bind(self, kernel: Kernel, image: bytes) -> None:
        text = base64.b64encode(image).decode()
        self.run(
            kernel,
            f"import base64, io\nfrom PIL import Image\nimage_1 = Image.open(io.BytesIO(base64.b64decode('{text}')))\nimage_1.load()\nNone",
        )

    def run_all(self, kernels: Sequence[Kernel], codes: Sequence[Sequence[str]]) -> list[CellOutput]:
        async def row(kernel: Kernel, cells: Sequence[str]) -> list[CellOutput]:
            return [await self._run(kernel, code) for code in cells]

        async def everything() -> list[list[CellOutput]]:
            return await asyncio.gather(*(row(k, c) for k, c in zip(kernels, codes, strict=True)))

        return [cell for cells in self._loop.run_until_complete(everything()) for cell in cells]

    def cpu_ms(self) -> float:
        """Returns the CPU time used so far by the running kernels and this client, ms."""
        return processes.cpu_ms([*(kernel.manager.provisioner.pid for kernel in self._open), os.getpid()])

    def private_mb(self, kernels: Sequence[Kernel]) -> float:
        """Returns the mean private memory of these kernels, 10⁶ bytes, and ends them."""
        size = sum(processes.private_mb(kernel.manager.provisioner.pid) for kernel in kernels) / len(kernels)
        self.close(kernels)
        return size

    def close(self, kernels: Sequence[Kernel]) -> None:
        async def end(kernel: Kernel) -> None:
            kernel.client.stop_channels()
            await kernel.manager.shutdown_kernel(now=True)
            self._open.discard(kernel)

        async def everything() -> None:
            await asyncio.gather(*(end(kernel) for kernel in kernels))

        self._loop.run_until_complete(everything())

    def stop(self) -> None:
        self.close(list(self._open))
        self._loop.close()
