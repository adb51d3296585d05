"""Runs the loop of a session process: read a request frame, run its cell, write a reply frame."""

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
from tools_service.sandbox.protocol.output_files import read_output
from tools_service.sandbox.worker import reaper
from tools_service.sandbox.worker.interpreter import Interpreter, InvalidInputImage

CHANNEL_FD = 3
_PRIVATE_FD_START = 100  # the loop's own descriptors are duplicated to numbers from here on
_SWITCH_INTERVAL_S = 0.005  # thread switch interval, CPython's default


class OutputStreams:
    """Captures a cell's stdout and stderr in the memfds on descriptors 1 and 2.

    Output of C code and of child processes is captured too, and the supervisor, which holds the same memfds,
    can read partial output when this process no longer replies.
    """

    def __init__(self, text_bytes: int):
        self._limit = text_bytes
        self._libc = ctypes.CDLL(None)
        # Duplicates that survive a cell which closes or replaces descriptors 1 and 2.
        self._kept = {n: fcntl.fcntl(n, fcntl.F_DUPFD_CLOEXEC, _PRIVATE_FD_START) for n in (1, 2)}
        self._open()

    def _open(self) -> None:
        self._input = open(os.devnull)

        def stream(descriptor: int) -> io.TextIOWrapper:
            raw = io.FileIO(descriptor, "w", closefd=False)
            return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)

        self.out, self.err = stream(1), stream(2)

    def start(self) -> None:
        """Rewinds both files and installs them as `sys.stdout` and `sys.stderr`, undoing earlier redirections."""
        if self.out.closed or self.err.closed or self._input.closed:
            self._open()
        sys.stdout = sys.__stdout__ = self.out  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self.err  # type: ignore[misc]
        sys.stdin = sys.__stdin__ = self._input  # type: ignore[misc]
        for descriptor, kept in self._kept.items():
            os.dup2(kept, descriptor)
            # Clears O_APPEND: the memfd already has its maximal size, so appending would always fail.
            fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)

    def write_out(self, text: str) -> None:
        self.out.write(text)

    def write_err(self, text: str) -> None:
        self.err.write(text)

    def collect(self) -> tuple[bytes, bytes]:
        """Flushes Python and C buffers and returns (stdout, stderr), each clipped to the text limit."""
        for stream in (self.out, self.err):
            try:
                stream.flush()
            except (OSError, ValueError):  # full, or closed by the cell
                pass
        self._libc.fflush(None)
        return read_output(self._kept[1], self._limit), read_output(self._kept[2], self._limit)


def serve_cells(interpreter: Interpreter, limits: Limits) -> None:
    """Answers requests on the control channel until it closes, then exits the process. Never returns."""
    owner = os.getpid()
    # Bound to locals: a cell that monkeypatches these modules cannot change the loop.
    write, getpid, exit_process = os.write, os.getpid, os._exit
    receive, write_frame, set_signal = frames.receive, frames.write, signal.signal
    switch_threads = sys.setswitchinterval
    channel = socket.socket(fileno=CHANNEL_FD)
    sigint, ignore = signal.SIGINT, signal.SIG_IGN
    set_mask, replace_mask = signal.pthread_sigmask, signal.SIG_SETMASK
    set_timer = signal.setitimer
    timers = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    streams = OutputStreams(limits.text_kb << 10)
    interpreter.set_streams(streams.write_out, streams.write_err)
    running = False

    def interrupt(*_: object) -> None:
        if running:
            raise KeyboardInterrupt("the cell was interrupted")

    while True:
        request = receive(channel, limits.request_bytes, limits.input_images)
        if request is None:
            exit_process(0)
        header, blobs, image_fds = request
        nonce = header["nonce"]
        reaper.reap_zombies()  # children that ended since the last cell
        try:
            streams.start()
            interpreter.bind_images(image_fds)
        except InvalidInputImage as error:
            write_frame(CHANNEL_FD, {"nonce": nonce, "status": "refused", "message": str(error)}, [b"", b""], write)
            continue
        ok = False
        try:
            set_mask(replace_mask, ())  # an earlier cell may have blocked SIGINT, the interrupt signal
            set_signal(sigint, interrupt)
            switch_threads(_SWITCH_INTERVAL_S)
            running = True
            ok = interpreter.run(blobs[0].decode("utf-8", "replace"), header["format"])
            running = False
        except BaseException:  # an interrupt that arrived after the cell ended and before `running` was cleared
            running = False
        set_signal(sigint, ignore)
        for timer in timers:
            set_timer(timer, 0)  # an expiring timer would kill the process between cells
        # Background threads of the cell contend for the GIL; a short switch interval keeps the loop responsive.
        switch_threads(_SWITCH_INTERVAL_S / 50)
        if getpid() != owner:  # a forked child of the cell must never write to the control channel
            exit_process(0)
        interpreter.reset_interpreter_state()
        reaper.reap_zombies()
        out, err = streams.collect()
        shown = interpreter.images
        reply = {"nonce": nonce, "status": "ok" if ok else "error", "message": "", "dropped": shown.dropped}
        write_frame(CHANNEL_FD, reply, [out, err, *shown.encoded], write)
