"""The interactive session: scripts through a pipe and typing through a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time

import pytest
from PIL import Image

from tools_service.cli.shell import is_complete, split_script
from tools_service.client import start_local_service

LIGHT = ["--packages", "numpy,pillow", "--warm", "2"]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shell")
    (folder / "corpus.jsonl").write_text('{"title": "Iron", "text": "Iron melts at 1538 °C."}\n')
    service = start_local_service(text_index=folder / "corpus.jsonl", log_path=folder / "log.txt", extra_args=LIGHT)
    yield service.address
    service.stop()


def test_a_script_is_cut_at_its_marks():
    assert list(split_script("a = 1\n# %% second\nb = 2\n# %%\n")) == ["a = 1\n", "b = 2\n", ""]


@pytest.mark.parametrize(
    ("lines", "done"),
    [
        (["1 + 1"], True), (["def f():"], False), (["def f():", "    return 1"], False), (["def f():", "    return 1", ""], True),
        (["x = ("], False), (["x = (", "1)"], True), (["1 +"], True), ([":info"], True), (["await f()"], True),
        (["%magic"], True), (["'''"], False), (["for i in x:", "    pass", "y = 1"], False),
        (["for i in x:", "    pass", "y = 1", ""], True),
    ],
)  # fmt: skip
def test_a_cell_ends_where_python_says_so(lines, done):
    assert is_complete(lines) is done


def test_a_script_runs_cell_by_cell_and_its_images_are_files(address, tmp_path):
    Image.new("RGB", (60, 40), (1, 2, 3)).save(tmp_path / "in.png")
    script = """
x = image_1.size
# %%
display(image_1.crop((0, 0, 20, 10)))
print('seen', x)
image_1
# %%
:search iron
# %%
:similar missing.png
# %%
1 / 0
"""
    command = [
        sys.executable,
        "-m",
        "tools_service.cli.shell",
        "--address",
        address,
        "--image",
        str(tmp_path / "in.png"),
    ]
    command += ["--output", str(tmp_path / "out"), "--image-format", "webp"]
    run = subprocess.run(command, input=script, capture_output=True, text=True, timeout=300)
    assert run.returncode == 1 and run.stderr == "", run
    assert "seen (60, 40)" in run.stdout and "1. Iron" in run.stdout and "missing.png" in run.stdout
    assert "ZeroDivisionError" in run.stdout and f"[20 x 10 pixels: {tmp_path}/out/image_001.webp]" in run.stdout
    assert Image.open(tmp_path / "out" / "image_001.webp").size == (20, 10)
    assert Image.open(tmp_path / "out" / "image_002.webp").getpixel((5, 5)) == (1, 2, 3)


def test_typing_interrupting_and_leaving(address, tmp_path, request):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "tools_service.cli.shell", "--address", address, "--output", str(tmp_path)]
    shell = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=False,
                             preexec_fn=lambda: (os.setsid(), _take_terminal()))  # fmt: skip
    os.close(slave)
    request.addfinalizer(shell.kill)
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 120
        while text not in seen and time.monotonic() < deadline:
            if not select.select([master], [], [], 1)[0]:
                continue
            try:
                seen += os.read(master, 4096)
            except OSError:
                break
        assert text in seen, seen[-2000:]
        seen = seen[seen.index(text) + len(text) :]

    until(b"In [1]: ")
    os.write(master, b"x = 40\n")
    until(b"In [2]: ")
    os.write(master, b"print('begun')\n")
    until(b"begun\r\nIn [3]: ")
    os.write(master, b"while True: pass\n\n")
    time.sleep(2)
    os.write(master, b"\x03")
    until(b"interrupted on request")
    until(b"In [4]: ")
    os.write(master, b"x + 2\n")
    until(b"42\r\n")
    os.write(master, b":restart\n")
    until(b"a fresh session")
    os.write(master, b"x\n")
    until(b"NameError")
    until(b"]: ")  # an EOF typed before the prompt would be discarded
    os.write(master, b"\x04")
    assert shell.wait(60) == 0
    os.close(master)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    for arguments in (["--address", "no-port"], ["--image", str(tmp_path / "missing.png"), "--address", "127.0.0.1:1"]):
        run = subprocess.run(
            [sys.executable, "-m", "tools_service.cli.shell", *arguments],
            input="",
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 2 and run.stderr.startswith("error: ") and run.stderr.count("\n") == 1, run
