"""Fuzzing with malformed frames, requests and images: no crash, no hang, no effect on a witness session.

    python -m benchmarks.tools_fuzz --minutes 10
    python -m benchmarks.tools_fuzz --attacks 40 --seed 7      # a number of attacks instead

A running service is attacked from both sides: by clients, with invalid fields, bytes that are no message,
connections that speak no HTTP/2, and damaged images; and by sessions, with damaged replies on the control channel.
The parsers of session replies are also fuzzed in this process, with PIL as the independent oracle. Meanwhile a witness
session must keep counting, and server, manager and zygote must not be restarted. The seed of a successful attack is
printed.
"""

from __future__ import annotations

import argparse
import io
import itertools
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import grpc
from PIL import Image

from benchmarks import fuzz_inputs, processes
from tools_service.client import LocalService, start_local_service
from tools_service.proto import tools_pb2 as pb
from tools_service.proto import tools_pb2_grpc

_HANG_TIMEOUT_S = 60.0  # of a call; of an attack twice as long
_WITNESS_EVERY = 20  # attacks between two checks of the witness
_ACCEPTABLE_CODES = frozenset(  # acceptable refusals of an attacker
    {
        grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAUTHENTICATED,
    }
)  # fmt: skip


class InvariantViolation(Exception):
    """The service violated an invariant: it crashed, hung, or passed invalid data on."""


class Target:
    """A running service under attack."""

    def __init__(self, service: LocalService):
        self.service = service
        self.channel = grpc.insecure_channel(service.address, options=[("grpc.max_receive_message_length", 64 << 20)])
        self.stub = tools_pb2_grpc.ToolsStub(self.channel)
        self._numbers = itertools.count()
        self._processes = processes.roles(service.process.pid)
        self._counted = 0
        self.witness()

    def call(self, method, message, what: str):
        """Makes one call and accepts a refusal. Raises InvariantViolation if it hangs or the server ends."""
        try:
            reply = method(message, timeout=_HANG_TIMEOUT_S)
            return list(reply) if hasattr(reply, "__next__") else [reply]
        except grpc.RpcError as error:
            if error.code() not in _ACCEPTABLE_CODES:
                raise InvariantViolation(f"{what}: {error.code().name}: {error.details()}") from None
            return []

    def run(self, session: str, code: str, timeout_s: float = 2.0, **fields) -> pb.Result | None:
        request = pb.ExecRequest(
            request_id=f"fuzz-{next(self._numbers)}", session_id=session, code=code, timeout_s=timeout_s, **fields
        )
        replies = self.call(self.stub.Exec, request, f"a cell in {session}")
        return replies[0] if replies else None

    def witness(self) -> None:
        """Checks that the witness session keeps counting and that no process of the service was restarted."""
        self._counted += 1
        reply = self.run("witness", "n = globals().get('n', 0) + 1\nprint(n)", timeout_s=30.0)
        if reply is None or reply.stdout != f"{self._counted}\n":
            raise InvariantViolation(f"the witness said {reply} instead of {self._counted}")
        now = processes.roles(self.service.process.pid)
        if (now.server, now.manager, now.zygote) != (
            self._processes.server,
            self._processes.manager,
            self._processes.zygote,
        ):
            raise InvariantViolation(f"processes changed: {self._processes} → {now}")

    def host_and_port(self) -> tuple[str, int]:
        host, _, port = self.service.address.rpartition(":")
        return host, int(port)


def requests(target: Target, dice: random.Random) -> None:
    """Sends well-formed messages with invalid field values."""
    kind = dice.choice(("exec", "batch", "search", "interrupt", "close"))
    if kind == "exec":
        target.call(target.stub.Exec, fuzz_inputs.exec_request(dice), "Exec")
    elif kind == "batch":
        message = pb.BatchExecRequest(images=[fuzz_inputs.encoded_image(dice) for _ in range(dice.randrange(3))])
        message.items.extend(fuzz_inputs.exec_request(dice) for _ in range(dice.choice((0, 1, 5, 40))))
        replies = target.call(target.stub.BatchExec, message, "BatchExec")
        if replies and len(replies) != len(message.items):
            raise InvariantViolation(f"{len(replies)} answers to {len(message.items)} cells")
    elif kind == "search":
        message = pb.BatchSearchRequest(items=[fuzz_inputs.search_request(dice) for _ in range(dice.choice((0, 1, 9)))])
        replies = target.call(target.stub.BatchSearch, message, "BatchSearch")
        if replies and len(replies) != len(message.items):
            raise InvariantViolation(f"{len(replies)} answers to {len(message.items)} searches")
    elif kind == "interrupt":
        target.call(target.stub.Interrupt, pb.InterruptRequest(session_id=fuzz_inputs.name(dice)), "Interrupt")
    else:
        names = [fuzz_inputs.name(dice) for _ in range(dice.randrange(50))]
        target.call(target.stub.CloseSessions, pb.CloseSessionsRequest(session_ids=names), "CloseSessions")


def messages(target: Target, dice: random.Random) -> None:
    """Sends bytes that are no message of the method, or names an unknown method."""
    name = dice.choice(("Exec", "BatchExec", "BatchSearch", "Interrupt", "CloseSessions", "GetInfo", "Nothing"))
    make = target.channel.unary_stream if name.startswith("Batch") else target.channel.unary_unary
    data = fuzz_inputs.damaged(dice, fuzz_inputs.exec_request(dice).SerializeToString())
    target.call(make(f"/tools.v1.Tools/{name}"), data, f"{len(data)} bytes to {name}")


def connections(target: Target, dice: random.Random) -> None:
    """Sends bytes that are no HTTP/2, then stalls or disconnects."""
    fuzz_inputs.send_garbage(dice, target.host_and_port())


def answers(target: Target, dice: random.Random) -> None:
    """Runs a cell that writes to its control channel before, instead of or after its reply."""
    reply = target.run(f"liar-{dice.randrange(6)}", fuzz_inputs.forged_reply_cell(dice), timeout_s=1.0)
    if reply is not None and any(Image.open(io.BytesIO(image)).size == (0, 0) for image in reply.images):
        raise InvariantViolation("an image without pixels was passed on")


def images(target: Target, dice: random.Random) -> None:
    """Sends a damaged image as the input of a session and as a search query."""
    data = fuzz_inputs.encoded_image(dice)
    session = f"viewer-{dice.randrange(10**9)}"
    digest = fuzz_inputs.digest(data)
    reply = target.run(
        session,
        "print(image_1.size)\ntry: image_1.load()\nexcept Exception as e: print(type(e))",
        images=[data],
        image_digests=[digest],
    )
    if reply is not None and reply.status not in (
        pb.OK,
        pb.ERROR,
        pb.REFUSED,
        pb.TIMEOUT,
        pb.OOM,
        pb.MISSING_IMAGES,
        pb.CRASHED,
    ):
        raise InvariantViolation(f"an input image gave {pb.Status.Name(reply.status)}: {reply.message}")
    query = pb.SearchRequest(request_id=f"q{dice.getrandbits(60)}", k=3, image=pb.ImageQuery(image=data))
    for found in target.call(target.stub.BatchSearch, pb.BatchSearchRequest(items=[query]), "an image search"):
        if found.status not in (pb.OK, pb.REFUSED):
            raise InvariantViolation(f"an image query gave {pb.Status.Name(found.status)}: {found.message}")
    target.call(target.stub.CloseSessions, pb.CloseSessionsRequest(session_ids=[session]), "CloseSessions")


def parsers(target: Target, dice: random.Random) -> None:
    """Fuzzes the parsers of the server in this process."""
    for _ in range(200):
        try:
            fuzz_inputs.parse_frame(dice)
            fuzz_inputs.parse_png(dice)
            fuzz_inputs.parse_webp(dice)
        except fuzz_inputs.InvalidInputAccepted as error:
            raise InvariantViolation(str(error)) from None


ATTACKS = (requests, messages, connections, answers, images, parsers)


def fuzz(target: Target, seed: int, attacks: int, until: float) -> Counter[str]:
    """Runs the attacks in turn and returns their number by kind. Raises InvariantViolation, naming the seed."""
    done: Counter[str] = Counter()

    def hung(*_: object) -> None:
        raise InvariantViolation(f"no end after {2 * _HANG_TIMEOUT_S:g} s")

    signal.signal(signal.SIGALRM, hung)
    for number in itertools.count():
        if (attacks and number >= attacks) or (not attacks and time.monotonic() > until):
            return done
        attack = ATTACKS[number % len(ATTACKS)]
        signal.alarm(int(2 * _HANG_TIMEOUT_S))
        try:
            attack(target, random.Random(f"{seed}/{number}"))
            done[attack.__name__] += 1
            if number % _WITNESS_EVERY == _WITNESS_EVERY - 1:
                target.witness()
        except InvariantViolation as error:
            raise InvariantViolation(f"attack {number} ({attack.__name__}) of seed {seed}: {error}") from None
        except Exception:
            raise InvariantViolation(
                f"attack {number} ({attack.__name__}) of seed {seed}: {traceback.format_exc()}"
            ) from None
        finally:
            signal.alarm(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tools_fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--attacks", type=int, default=0, help="number of attacks, instead of --minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tier", default="root", help="strongest confinement that the service may use")
    parser.add_argument("--packages", default="numpy,pillow", help="distributions that sessions may import")
    arguments = parser.parse_args()
    wrong: list[str] = []
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        gallery = Path(folder) / "gallery"
        gallery.mkdir()
        for number in range(4):
            fuzz_inputs.valid_image(random.Random(number), "PNG").save(gallery / f"{number}.png")
        log = Path(folder) / "log.txt"
        service_arguments = [
            "--tier",
            arguments.tier,
            "--packages",
            arguments.packages,
            "--warm",
            "3",
            "--memory-mb",
            "256",
            "--max-sessions",
            "64",
        ]
        service = start_local_service(image_index=gallery, log_path=log, extra_args=service_arguments)
        try:
            target = Target(service)
            done = fuzz(target, arguments.seed, arguments.attacks, time.monotonic() + 60 * arguments.minutes)
            target.witness()
            target.channel.close()
        except InvariantViolation as error:
            wrong.append(str(error))
        finally:
            service.stop()
        text = log.read_text(errors="replace")
        if "Traceback" in text or "never retrieved" in text:
            wrong.append(f"the log has a traceback: {text[-3000:]}")
    print(f"{sum(done.values())} attacks ({', '.join(f'{n} {k}' for k, n in done.items())}); {service.banner[0]}")
    for line in wrong:
        print(f"BROKEN: {line}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
