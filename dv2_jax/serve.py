"""Serves a policy through the OpenAI API: `python -m dv2_jax.serve [--config=configs/serve.py[:PRESET]]`.

    python -m dv2_jax.serve --config=configs/serve.py --config.model.init=checkpoint:runs/rl --config.serve.port=8000

Two models are served: `dv2` runs its tools in the server and replies with the final answer; `dv2-raw` samples one turn, and
the client runs the tools. The first SIGTERM or Ctrl-C lets running requests finish.
"""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from pathlib import Path

from dv2_jax.config import Config, ConfigError, RunFailure, run_command


def run(config: Config) -> None:
    """Serves until a signal arrives.

    Raises:
        ConfigError: the address, name, token or policy cannot be used, or the policy spans several hosts.
        RunFailure: running requests had to be ended at shutdown.
    """
    from dv2_jax.parallel import distributed
    from dv2_jax.policy import load_policy
    from dv2_jax.recipes.run import write_json
    from dv2_jax.rollout.session import open_session
    from dv2_jax.serving.chat_service import ChatService
    from dv2_jax.serving.engine_thread import EngineThread
    from dv2_jax.serving.http_app import build_app
    from dv2_jax.serving.http_server import check_name, listen, read_token, serve_until_signal
    from dv2_jax.serving.request_metrics import RequestMetrics
    from dv2_jax.serving.saved_answers import saver
    from dv2_jax.serving.served_policy import ServedPolicy

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    serve = config.serve
    check_name(serve.name)
    token = read_token(serve)
    run_dir = Path(config.run.root) / config.run.name
    if (run_dir / "checkpoints").exists():
        raise ConfigError(f"{run_dir} is a training run: choose another folder with --config.run.name=NAME")
    with ExitStack() as stack:
        listener = stack.enter_context(listen(serve))
        distributed.initialize(cpu_devices=config.mesh.cpu_devices)
        if distributed.process_count() > 1:
            raise ConfigError("a server runs on one host: start one per host, behind a load balancer")
        _print(f"loading {config.model.init} and compiling")
        policy = load_policy(config)
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / "config.json", config.to_dict())
        session = stack.enter_context(open_session(policy, config, run_dir))
        session.load_params()
        on_answer = stack.enter_context(saver(run_dir, session.tokenizer)) if serve.save_trajectories else None
        engine = EngineThread(session.scheduler(), on_answer)
        service = ChatService(ServedPolicy(session), engine, RequestMetrics())
        engine.start()
        stack.callback(service.close)
        host, port = listener.getsockname()[:2]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        names = f"{service.policy.agent_name}, {service.policy.raw_name}"
        _print(f"serving {names} at http://{address}/v1{'' if token else ' (no token)'}")
        finished = serve_until_signal(build_app(service, serve, token), service, serve, listener)
    if not finished:
        raise RunFailure(f"some requests were ended after serve.drain_s = {serve.drain_s:g} s")


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Runs `dv2-serve`."""
    run_command(run, command="serve", default_config="configs/serve.py")


if __name__ == "__main__":
    main()
