"""``python -m tools_service``: starts the service, prints where it listens, ends on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys

from tools_service import options as command_line
from tools_service import server
from tools_service.sandbox.host import SandboxUnavailable


async def serve(options: command_line.Options) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if options.exit_with_parent:
        _watch(os.getppid(), stop, loop)
    running, port, tools, host, checks = await server.build(options)
    info = tools.info()
    print(f"isolation: {info['isolation'] or 'no sandbox'}")
    limits = info["limits"]
    if limits:
        print(
            f"limits: {limits['memory_mb']} MB memory, {limits['disk_mb']} MB disk, {limits['processes']} processes a session; "
            f"{info['max_sessions']} sessions; {limits['timeout_s']:g} s a cell unless asked otherwise"
        )
    print(f"search: {', '.join(info['providers']) or 'none'}")
    print(f"listening on {options.host}:{port}", flush=True)
    background = [loop.create_task(tools.housekeeping())]
    await stop.wait()
    await checks.enter_graceful_shutdown()
    await tools.drain()
    await running.stop(grace=1.0)
    for task in background:
        task.cancel()
    if host is not None:
        await host.close()


def _watch(parent: int, stop: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    """Stops when the parent process ends. (PR_SET_PDEATHSIG would fire when its starting thread ends.)"""
    handle = os.pidfd_open(parent)
    loop.add_reader(handle, lambda: (loop.remove_reader(handle), stop.set()))


def main() -> None:
    try:
        options = command_line.parse()
    except command_line.BadOptions as error:
        sys.exit(f"error: {error}")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # four descriptors a session, one a picture
    try:
        asyncio.run(serve(options))
    except (SandboxUnavailable, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
