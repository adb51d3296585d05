"""Throughput of the server under concurrent clients, against rollouts of the same questions on the same engine.

    python -m benchmarks.serving --json serving.json [--rows 128] [--clients 64] [--rounds 3] [--slots 64]

Rounds of both alternate in one process with one engine, so that load on the machine affects both alike; the clients are a
process of their own. Reported are the medians of answers per second, and that all answers are equal.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.partition("\n")[0])
    result.add_argument("--json", type=Path, help="file to write the numbers to")
    result.add_argument("--rows", type=int, default=128, help="embedded questions per round")
    result.add_argument("--clients", type=int, default=64, help="concurrent clients")
    result.add_argument("--slots", type=int, default=64, help="sequences that the engine decodes together")
    result.add_argument("--rounds", type=int, default=3, help="rounds of each kind")
    result.add_argument("--ask", nargs=2, metavar=("URL", "FILE"), help=argparse.SUPPRESS)  # the client process
    return result


async def ask_all(url: str, bodies: list[dict], clients: int) -> tuple[float, list[str]]:
    """Sends all requests from concurrent clients; returns the seconds and the answers in order."""
    import httpx

    waiting = iter(enumerate(bodies))
    answers = [""] * len(bodies)

    async def client(session: httpx.AsyncClient) -> None:
        for index, body in waiting:
            reply = await session.post(f"{url}/chat/completions", json=body)
            reply.raise_for_status()
            answers[index] = reply.json()["choices"][0]["message"]["content"]

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=3600, limits=limits) as session:
        started = time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        return time.perf_counter() - started, answers


def measure(rows: int, clients: int, rounds: int, slots: int) -> dict:
    """Returns the numbers of both kinds of rounds."""
    from dv2_jax.config import load
    from dv2_jax.parallel import distributed
    from dv2_jax.policy import load_policy
    from dv2_jax.rollout.scheduler import RolloutRequest
    from dv2_jax.rollout.session import open_session
    from dv2_jax.serving.chat_response import answer_text
    from dv2_jax.toy.tasks import make_questions

    words = [f"--config.engine.slots={slots}"]
    config = load(words, command="serve", default_config="configs/serve.py")
    distributed.initialize(cpu_devices=config.mesh.cpu_devices)
    policy = load_policy(config)
    questions = [made for made in make_questions("eval", rows, 0)]
    bodies = [{"model": "dv2", "temperature": 0, "messages": [_message(question)]} for question in questions]
    requests = [RolloutRequest(question, f"q{index}", index) for index, question in enumerate(questions)]
    seconds: dict[str, list[float]] = {"evaluate": [], "server": []}
    with (
        tempfile.TemporaryDirectory(prefix="dv2_jax_serving_") as folder,
        open_session(policy, config, folder) as session,
    ):
        session.load_params()
        file = Path(folder, "bodies.json")
        file.write_text(json.dumps(bodies))
        expected: list[str] = []
        for number in range(rounds + 1):  # the first round of each warms up
            started = time.perf_counter()
            trajectories = session.scheduler(temperature=0.0).run(requests)
            rollout_s = time.perf_counter() - started
            expected = [answer_text(trajectory, session.tokenizer) for trajectory in trajectories]
            served_s, answers = _serve_round(session, file, clients)
            different = sum(a != b for a, b in zip(expected, answers, strict=True))
            if different:
                raise SystemExit(f"{different} of {rows} answers of the server differ from those of the rollouts")
            print(f"round {number}: evaluate {rows / rollout_s:.2f}/s, server {rows / served_s:.2f}/s", flush=True)
            if number:
                seconds["evaluate"].append(rollout_s)
                seconds["server"].append(served_s)
    rates = {kind: rows / statistics.median(times) for kind, times in seconds.items()}
    return {
        "rows": rows, "clients": clients, "rounds": rounds, "slots": slots, "seconds": seconds, "answers_per_s": rates,
        "server_over_evaluate": rates["server"] / rates["evaluate"], "different_answers": 0,
    }  # fmt: skip


def _message(question) -> dict:
    images = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(image).decode()}"}}
        for image in question.images
    ]
    return {"role": "user", "content": [*images, {"type": "text", "text": question.text}]}


def _serve_round(session, file: Path, clients: int) -> tuple[float, list[str]]:
    """Starts a server on the session's engine, runs the client process, and stops the server."""
    import uvicorn

    from dv2_jax.serving.chat_service import ChatService
    from dv2_jax.serving.engine_thread import EngineThread
    from dv2_jax.serving.http_app import build_app
    from dv2_jax.serving.request_metrics import RequestMetrics
    from dv2_jax.serving.served_policy import ServedPolicy

    engine = EngineThread(session.scheduler())
    service = ChatService(ServedPolicy(session), engine, RequestMetrics())
    engine.start()
    settings = uvicorn.Config(
        build_app(service, session.config.serve, ""), lifespan="off", log_level="warning", http="h11", ws="none"
    )
    server = uvicorn.Server(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        command = [sys.executable, "-m", "benchmarks.serving", "--clients", str(clients), "--ask", url, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout)
        return result["seconds"], result["answers"]
    finally:
        server.should_exit = True
        thread.join()
        service.close()


def main() -> None:
    arguments = parser().parse_args()
    if arguments.ask:
        url, file = arguments.ask
        seconds, answers = asyncio.run(ask_all(url, json.loads(Path(file).read_text()), arguments.clients))
        print(json.dumps({"seconds": seconds, "answers": answers}))
        return
    result = measure(arguments.rows, arguments.clients, arguments.rounds, arguments.slots)
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
