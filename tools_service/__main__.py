"""`python -m tools_service`: starts the service, prints its address, and drains on SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Iterator

from tools_service.common import logs
from tools_service.sandbox.manager.manager_client import SandboxUnavailable
from tools_service.server import options as command_line
from tools_service.server import startup


async def serve(options: command_line.ServiceOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if options.exit_with_parent:
        _stop_with_parent(os.getppid(), stop, loop)
    running = await startup.start_service(options)
    for line in _banner_lines(options, running.tools.info()):
        print(line)
    print(f"listening on {options.host}:{running.port}", flush=True)
    logs.event("listening", replica=running.tools.replica, tier=running.tools.info()["tier"])
    background = [loop.create_task(running.tools.run_janitor())]
    await stop.wait()
    logs.event("draining")
    await running.health_servicer.enter_graceful_shutdown()
    await running.tools.drain()
    await running.server.stop(grace=1.0)
    for task in background:
        task.cancel()
    await running.tools.close()
    if running.manager is not None:
        await running.manager.close()
    logs.event("stopped")


def _banner_lines(options: command_line.ServiceOptions, info: dict) -> Iterator[str]:
    yield f"isolation: {info['isolation'] or 'no sandbox'}"
    if limits := info["limits"]:
        yield f"limits: {info['limits_text']}"
        yield f"sessions: at most {info['max_sessions']}; {limits['timeout_s']:g} s a cell unless asked otherwise"
    yield f"search: {', '.join(info['providers']) or 'none'}"
    checks = ["bearer token"] if options.tokens else []
    if options.tls_client_ca:
        checks.append("client certificate")
    yield f"callers show: {' and '.join(checks) or 'nothing (loopback only)'}; TLS {'on' if options.tls_cert else 'off'}"
    if options.metrics_port:
        yield f"metrics: http://{options.host}:{options.metrics_port}/metrics"


def _stop_with_parent(parent: int, stop: asyncio.Event, loop: asyncio.AbstractEventLoop) -> None:
    """Sets `stop` when the parent process ends. PR_SET_PDEATHSIG is unusable: it fires when the starting thread ends."""
    handle = os.pidfd_open(parent)

    def on_exit() -> None:
        loop.remove_reader(handle)
        stop.set()

    loop.add_reader(handle, on_exit)


def main() -> None:
    try:
        options = command_line.parse()
    except command_line.InvalidOptions as error:
        sys.exit(f"error: {error}")
    logs.start("info")
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))  # four descriptors per session, one per image
    try:
        asyncio.run(serve(options))
    except (SandboxUnavailable, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
