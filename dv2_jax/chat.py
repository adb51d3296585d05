"""Chats with a policy: `python -m dv2_jax.chat --image my.png [--question "…"] [--model package:cold_start]`.

Prints each turn as it is generated: thoughts, code, its output and images, searches and their results, and the answer.
Without `--question` it reads questions from the terminal.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dv2_jax.config import Config, ConfigError, load, one_line_errors

if TYPE_CHECKING:
    from dv2_jax.evaluation.chat_printer import ChatPrinter
    from dv2_jax.rollout.session import RolloutSession


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m dv2_jax.chat",
        description="Ask a policy about your own images and watch it use its tools.",
        epilog="Any field of the configuration can be set as well, e.g. --config.sampling.temperature=1 or "
        "--config=configs/evaluate.py:7b; `python -m dv2_jax.evaluate --help` lists them.",
    )
    result.add_argument(
        "--image", action="append", type=Path, default=[], help="an image file; may be given several times"
    )
    result.add_argument(
        "--question", help="question to answer before leaving; by default, questions are read from the terminal"
    )
    result.add_argument(
        "--model",
        help="package:cold_start (the default), package:base, hf:FOLDER, or a run directory (its newest checkpoint)",
    )
    result.add_argument(
        "--image-folder", type=Path, default=Path("chat_images"), help="folder for the images that code returns"
    )
    result.add_argument("--pictures", dest="image_folder", type=Path, help=argparse.SUPPRESS)  # its name before 0.2
    return result


def configuration(model: str | None, rest: list[str]) -> Config:
    """Returns the evaluation configuration with the `--config…` overrides in `rest` and the weights of `--model`."""
    config = load(rest, command="chat", default_config="configs/evaluate.py")
    if model:
        init = model if ":" in model or model == "random" else f"checkpoint:{model}"
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, init=init))
    engine = dataclasses.replace(config.engine, slots=1, prefill_rows=1)
    run = dataclasses.replace(config.run, name="chat")
    return dataclasses.replace(config, engine=engine, run=run)


def read_images(paths: Sequence[Path], config: Config) -> tuple[bytes, ...]:
    """Reads the images of `--image` and checks that the model can see them.

    Raises:
        ConfigError: an image is missing, broken or too narrow, or there are too many; the message names the path.
    """
    from dv2_jax.data.images import ImageError, ImageFile, load_image, smart_resize

    if len(paths) > config.agent.max_images:
        raise ConfigError(f"{len(paths)} times --image, but agent.max_images = {config.agent.max_images}: give fewer")
    images = []
    for path in paths:
        try:
            images.append(ImageFile.read(path))
            image = load_image(images[-1])
            bounds = {"min_pixels": config.image.min_pixels, "max_pixels": config.image.max_pixels}
            smart_resize(image.height, image.width, **bounds)
        except OSError as error:
            raise ConfigError(f"--image={path}: {error.strerror}; give the path of an image file") from None
        except ImageError as error:
            raise ConfigError(f"--image={path} cannot be used: {error}") from None
    return tuple(images)


def questions(given: str | None, console: Console) -> Iterator[str]:
    """Yields the given question, or else typed ones until an empty line or the end of the input."""
    if given is not None:
        yield given
        return
    while True:
        try:
            text = console.input("\n[bold]ask>[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if not text:
            return
        yield text


def talk(session: RolloutSession, images: tuple[bytes, ...], texts: Iterator[str], show: ChatPrinter) -> None:
    """Samples one trajectory per question and prints each turn as it is generated."""
    from dv2_jax.data.question import Question
    from dv2_jax.rollout.scheduler import RolloutRequest

    scheduler = session.scheduler()
    for number, text in enumerate(texts):
        question = Question(f"chat-{number}", "chat", "perception", text, images, answer="")
        request = RolloutRequest(question, question.id, number)
        (trajectory,) = scheduler.run([request], on_turn=lambda _, turn: show.turn(turn))
        show.end(trajectory)


def main(argv: list[str] | None = None) -> None:
    arguments, rest = parser().parse_known_args(argv)
    console = Console()
    with one_line_errors():
        config = configuration(arguments.model, rest)
        images = read_images(arguments.image, config)
    from dv2_jax.evaluation.chat_printer import ChatPrinter
    from dv2_jax.policy import load_policy
    from dv2_jax.rollout.session import open_session

    with one_line_errors(), tempfile.TemporaryDirectory(prefix="dv2_jax_chat_") as folder, ExitStack() as stack:
        with console.status("loading the policy and starting its tools"):
            policy = load_policy(config, single_device=True)
            session = stack.enter_context(open_session(policy, config, folder))
            session.load_params(warmup=False)  # one conversation uses few of the buckets
        talk(
            session,
            images,
            questions(arguments.question, console),
            ChatPrinter(console, arguments.image_folder, session.prompt_encoder.tools),
        )


if __name__ == "__main__":
    main()
