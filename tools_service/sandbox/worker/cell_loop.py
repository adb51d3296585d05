"""The loop of a session's process: a frame in, a cell run, a frame out."""

from __future__ import annotations

import ctypes
import fcntl
import io
import os
import signal
import socket
import sys

from tools_service.sandbox.protocol import frames
from tools_service.sandbox.protocol.isolation_config import Limits
from tools_service.sandbox.worker import reaper
from tools_service.sandbox.worker.interpreter import BadPicture, Shell

CHANNEL = 3
_KEPT = 100  # descriptors of our own lie from here on
_SWITCH_S = 0.005  # between threads: the interpreter's own default


class Streams:
    """The cell's stdout and stderr: files in memory on descriptors 1 and 2, so that C code and child
    processes are captured too, and so that the supervisor can read them when this process cannot answer."""

    def __init__(self, text_bytes: int):
        self._limit = text_bytes
        self._libc = ctypes.CDLL(None)
        # Copies that outlast a cell which closes or replaces descriptors 1 and 2.
        self._kept = {n: fcntl.fcntl(n, fcntl.F_DUPFD_CLOEXEC, _KEPT) for n in (1, 2)}
        self._open()

    def _open(self) -> None:
        self._input = open(os.devnull)

        def stream(descriptor: int) -> io.TextIOWrapper:
            raw = io.FileIO(descriptor, "w", closefd=False)
            return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)

        self.out, self.err = stream(1), stream(2)

    def start(self) -> None:
        """Empties both and makes them sys.stdout and sys.stderr, whatever the last cell did to those."""
        if self.out.closed or self.err.closed or self._input.closed:
            self._open()
        sys.stdout = sys.__stdout__ = self.out
        sys.stderr = sys.__stderr__ = self.err
        sys.stdin = sys.__stdin__ = self._input
        for descriptor, kept in self._kept.items():
            os.dup2(kept, descriptor)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)  # no O_APPEND: the files are as long as they may be
            os.lseek(descriptor, 0, os.SEEK_SET)

    def write_out(self, text: str) -> None:
        self.out.write(text)

    def write_err(self, text: str) -> None:
        self.err.write(text)

    def collect(self) -> tuple[bytes, bytes]:
        for stream in (self.out, self.err):
            try:
                stream.flush()
            except (OSError, ValueError):  # full, or closed by the cell
                pass
        self._libc.fflush(None)
        return read_output(self._kept[1], self._limit), read_output(self._kept[2], self._limit)


def read_output(descriptor: int, limit: int) -> bytes:
    """What was written to a stream's file: all of it, or its head and tail with a note between."""
    size = os.lseek(descriptor, 0, os.SEEK_CUR)
    if size <= limit:
        return os.pread(descriptor, size, 0)
    half = limit // 2
    note = f"\n... {size - 2 * half} bytes left out ...\n".encode()
    return os.pread(descriptor, half, 0) + note + os.pread(descriptor, half, size - half)


def serve(shell: Shell, limits: Limits) -> None:
    """Answers requests on the control channel until it closes. Never returns to the caller's code."""
    owner = os.getpid()
    # Bound here: a cell may replace them in their modules, and can then only spoil its own answers.
    write, getpid, leave = os.write, os.getpid, os._exit
    receive, write_frame, set_signal = frames.receive, frames.write, signal.signal
    switch_threads = sys.setswitchinterval
    channel = socket.socket(fileno=CHANNEL)
    sigint, ignore = signal.SIGINT, signal.SIG_IGN
    set_mask, replace_mask, set_timer, timers = signal.pthread_sigmask, signal.SIG_SETMASK, signal.setitimer, (
        signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF,
    )  # fmt: skip
    streams = Streams(limits.text_kb << 10)
    shell.attach(streams.write_out, streams.write_err)
    running = False

    def interrupt(*_: object) -> None:
        if running:
            raise KeyboardInterrupt("the cell was interrupted")

    while True:
        request = receive(channel, limits.request_bytes, limits.input_images)
        if request is None:
            leave(0)
        header, blobs, pictures = request
        nonce = header["nonce"]
        reaper.bury()  # what ended since the last cell
        try:
            streams.start()
            shell.bind_images(pictures)
        except BadPicture as error:
            write_frame(CHANNEL, {"nonce": nonce, "status": "refused", "message": str(error)}, [b"", b""], write)
            continue
        ok = False
        try:
            set_mask(replace_mask, ())  # a former cell may have blocked the signal that interrupts
            set_signal(sigint, interrupt)
            switch_threads(_SWITCH_S)
            running = True
            ok = shell.run(blobs[0].decode("utf-8", "replace"), header["format"])
            running = False
        except BaseException:  # an interrupt that came between the end of the cell and the line above
            running = False
        set_signal(sigint, ignore)
        for timer in timers:
            set_timer(timer, 0)  # it would end the process between cells
        # Threads that the cell left spinning would otherwise hold each of our next steps up for their full turns.
        switch_threads(_SWITCH_S / 50)
        if getpid() != owner:  # a fork made by the cell: it must never speak for the session
            leave(0)
        shell.tidy()
        reaper.bury()
        out, err = streams.collect()
        shown = shell.pictures
        reply = {"nonce": nonce, "status": "ok" if ok else "error", "message": "", "dropped": shown.dropped}
        write_frame(CHANNEL, reply, [out, err, *shown.encoded], write)
