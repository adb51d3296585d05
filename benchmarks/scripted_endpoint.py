"""A local OpenAI-compatible endpoint that answers the embedded questions: as a model of limited ability, and as a teacher.

    python -m benchmarks.scripted_endpoint --port 8017 --questions 64 --wrong 0.1 --malformed 0.05 --overload 0.1

The model `base` solves a third of the questions without tools and another third with them. The model `teacher` writes the
turns of the scripted solver, whose calls the client executes. Some answers of the teacher are wrong and some turns are
malformed, by the question; some requests are refused with 429 or fail, by chance. It measures pipelines, not models.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.chat_server import RESET, ChatServer, Raw, completion
from dv2_jax.agent.trajectory import TurnRecord
from dv2_jax.data.chat_encoder import IMAGE_MARKER
from dv2_jax.data.question import Question
from dv2_jax.endpoint.chat_reply import encode_body
from dv2_jax.toy.scripted import DemonstrationFailed, demonstrate
from dv2_jax.toy.styles import StyleMix, TrajectoryStyle
from dv2_jax.toy.tasks import make_questions
from dv2_jax.toy.teacher import parse_feedback

PROBE_REPLY = "Yes"
GIVE_UP = "</think>\n<answer>unknown</answer>"


@dataclass(frozen=True)
class Faults:
    """Shares of wrong answers and malformed turns (of questions), and of refused and failing requests."""

    wrong: float = 0.0
    malformed: float = 0.0
    overload: float = 0.0  # 429 with retry-after
    failing: float = 0.0  # 500, or a connection that is reset


@dataclass
class Log:
    """Holds a digest per received question request, in order, and the counts of statuses."""

    requests: list[str] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)  # 0: a connection that was reset
    lock: threading.Lock = field(default_factory=threading.Lock)


class ScriptedModels:
    """Replies of the models `base` and `teacher` to requests about `size` embedded training questions of a seed."""

    def __init__(self, size: int, seed: int = 0, faults: Faults | None = None):
        self.faults = faults or Faults()
        self._questions: dict[tuple[str, str], Question] = {}
        for question in make_questions("train", size, seed):
            self._questions[question.text, _images_digest(question.images)] = question

    def reply(self, body: dict[str, Any]) -> str:
        """Returns the text of a reply; `Yes` to a request about no known question."""
        messages = [_parse(message) for message in body["messages"]]
        found = self._find(messages)
        if found is None:
            return PROBE_REPLY
        question, start = found
        if body["model"] == "base":
            return self._base(question, has_tools=any(message["role"] == "system" for message in body["messages"]))
        return self._teacher(question, messages[start + 1 :])

    def _find(self, messages: list[tuple[str, str, list[bytes]]]) -> tuple[Question, int] | None:
        for index, (role, text, images) in enumerate(messages):
            if role == "user":
                digest = _images_digest(images)
                plain = text.replace(IMAGE_MARKER, "").strip()
                for (wanted, images_digest), question in self._questions.items():
                    if images_digest == digest and wanted.replace(IMAGE_MARKER, "").strip() in plain:
                        return question, index
                return None
        return None

    def _base(self, question: Question, *, has_tools: bool) -> str:
        point = _point("base", question.id)
        knows = point < 1 / 3 or (has_tools and point < 2 / 3)
        return f"<think>I look at it.</think>\n<answer>{question.answer if knows else 'no idea'}</answer>"

    def _teacher(self, question: Question, after: list[tuple[str, str, list[bytes]]]) -> str:
        point = _point("teacher", question.id)
        if point < self.faults.malformed and not after:
            return "<think>I compute.</think>\n<code>\nprint('never closed'"
        seed = int(_point("style", question.id) * 2**32)
        rng = np.random.default_rng(seed)
        turns = demonstrate(question, TrajectoryStyle.sample(StyleMix(), rng), rng)
        text = next(turns)
        try:
            for role, observed, images in after:
                if role == "user":
                    text = turns.send(parse_feedback(TurnRecord("", "", observed, tuple(images))))
        except (DemonstrationFailed, StopIteration):
            return GIVE_UP
        if "<answer>" in text and self.faults.malformed <= point < self.faults.malformed + self.faults.wrong:
            return text.rpartition("<answer>")[0] + "<answer>something else</answer>"
        return text


def _point(salt: str, id_: str) -> float:
    """Returns a number in [0, 1) that depends on the question alone."""
    return int.from_bytes(hashlib.sha256(f"{salt}/{id_}".encode()).digest()[:8]) / 2**64


def _images_digest(images: Any) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(image).digest() for image in images)).hexdigest()


def _parse(message: dict[str, Any]) -> tuple[str, str, list[bytes]]:
    """Returns role, text with a marker per image, and the encoded images of a message."""
    content = message["content"]
    if isinstance(content, str):
        return message["role"], content, []
    text, images = "", []
    for part in content:
        if part["type"] == "text":
            text += part["text"]
        else:
            text += IMAGE_MARKER
            images.append(base64.b64decode(part["image_url"]["url"].partition(",")[2]))
    return message["role"], text, images


@contextmanager
def serve(models: ScriptedModels, *, port: int = 0, delay_s: float = 0.0) -> Iterator[tuple[str, Log]]:
    """Serves the models on the loopback address; yields the base URL and the log.

    The reply's `model` ends with the digest of the request, by which stored replies and requests can be compared.
    """
    log, faults, rng = Log(), models.faults, random.Random(0)

    def reply(body: dict[str, Any], number: int) -> Any:
        text = models.reply(body)
        if text == PROBE_REPLY:
            return text
        digest = hashlib.sha256(encode_body(body)).hexdigest()[:16]
        with log.lock:
            chance = rng.random()
            failed = chance < faults.overload + faults.failing
            status = 200 if not failed else 429 if chance < faults.overload else rng.choice((500, 0))
            log.requests.append(digest)
            log.statuses[status] = log.statuses.get(status, 0) + 1
        if status == 429:
            return Raw(429, b'{"error": {"message": "slow down"}}', {"retry-after": "0.05"})
        if status == 500:
            return Raw(500, b'{"error": {"message": "failed"}}')
        if status == 0:
            return RESET
        return completion(text, prompt=500, generated=len(text) // 4) | {"model": f"{body['model']}@{digest}"}

    server = ChatServer(reply, models=("base", "teacher"), delay_s=delay_s, port=port)
    try:
        yield server.url, log
    finally:
        server.close()


def main() -> None:
    """Serves until interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scripted_endpoint", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--port", type=int, default=8017)
    parser.add_argument("--questions", type=int, default=512, help="embedded training questions that are known")
    parser.add_argument("--seed", type=int, default=0, help="task.seed of the client")
    for name in ("wrong", "malformed", "overload", "failing"):
        parser.add_argument(f"--{name}", type=float, default=0.0, metavar="SHARE")
    arguments = parser.parse_args()
    faults = Faults(arguments.wrong, arguments.malformed, arguments.overload, arguments.failing)
    models = ScriptedModels(arguments.questions, arguments.seed, faults)
    with serve(models, port=arguments.port) as (url, _):
        print(url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
