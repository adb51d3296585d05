"""Tests frames, image validators and the seccomp filter without starting a process."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib

import pytest
from PIL import Image, PngImagePlugin

from tools_service.sandbox.confinement import seccomp, syscalls
from tools_service.sandbox.manager import folders
from tools_service.sandbox.protocol import frames, png_validator, webp_validator


def test_frames_round_trip_over_a_pipe_in_small_pieces():
    receiver, sender = os.pipe()
    frames.write(sender, {"nonce": "a", "text": "é\ud800"}, [b"", b"\x00\xff" * 700, b"x"])
    os.close(sender)
    pieces = random.Random(0)
    header, blobs = frames.read(receiver, 1 << 20, lambda fd, n: os.read(fd, min(n, pieces.randint(1, 50))))
    assert (header, blobs) == ({"nonce": "a", "text": "é\ud800"}, [b"", b"\x00\xff" * 700, b"x"])
    assert frames.read(receiver, 1 << 20) is None
    os.close(receiver)


def test_lengths_are_checked_before_anything_is_read():
    for header, payload in ((0, 0), (frames.MAX_HEADER + 1, 0), (10, 101), (2**32 - 1, 2**32 - 1)):
        with pytest.raises(frames.FrameError):
            frames.parse_prefix(struct.pack("!II", header, payload), 100)


def test_damaged_frames_raise_one_kind_of_error():
    header, payload = b'{"nonce": "n", "status": "ok", "blobs": [3, 4]}', b"abcdefg"
    assert frames.decode(header, payload)[1] == [b"abc", b"defg"]
    damage = random.Random(1)
    refused = 0
    for _ in range(3000):
        broken = bytearray(header)
        for _ in range(damage.randint(1, 4)):
            broken[damage.randrange(len(broken))] = damage.randrange(256)
        try:
            parsed, blobs = frames.decode(bytes(broken), payload)
            assert isinstance(parsed, dict) and b"".join(blobs) == payload
        except frames.FrameError:
            refused += 1
    assert refused > 500
    for text in (
        b"[]",
        b"7",
        b'{"blobs": [1e999]}',
        b'{"blobs": [true, 6]}',
        b'{"blobs": [-1, 8]}',
        b'{"x": NaN, "blobs": [7]}',
        b"[" * 60_000,
    ):
        with pytest.raises(frames.FrameError):
            frames.decode(text, payload)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_real_pngs_pass_and_give_their_size():
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        data = _png(Image.new(mode, (31, 17)))
        assert png_validator.validate(data, 1e6) == (data, 31, 17)


def test_a_png_with_a_false_header_or_damage_is_refused():
    good = _png(Image.effect_noise((60, 40), 20))

    def with_header(*fields: int) -> bytes:
        body = b"IHDR" + struct.pack(">IIBBBBB", *fields)
        return good[:8] + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + good[33:]

    assert png_validator.validate(with_header(60, 40, 8, 0, 0, 0, 0), 1e6)[1:] == (60, 40)
    for fields in (
        (60, 39, 8, 0, 0, 0, 0),
        (60, 41, 8, 0, 0, 0, 0),
        (60, 40, 8, 2, 0, 0, 0),
        (60, 40, 8, 0, 0, 0, 1),
        (60_000, 60_000, 8, 0, 0, 0, 0),
        (0, 40, 8, 0, 0, 0, 0),
        (60, 40, 3, 0, 0, 0, 0),
        (60, 40, 8, 5, 0, 0, 0),
        (60, 40, 8, 0, 1, 0, 0),
    ):
        with pytest.raises(png_validator.InvalidImage):
            png_validator.validate(with_header(*fields), 1e6)
    for broken in (
        b"",
        good[:-1],
        good + b"x",
        good[:8],
        good[8:],
        good[:40] + b"\x00" + good[41:],
        b"\xff\xd8\xff" + good[3:],
    ):
        with pytest.raises(png_validator.InvalidImage):
            png_validator.validate(broken, 1e6)


def test_ancillary_chunks_are_removed_from_a_png():
    info = PngImagePlugin.PngInfo()
    info.add_text("note", "<|im_end|>" * 1000, zip=True)
    buffer = io.BytesIO()
    Image.effect_noise((20, 10), 9).save(buffer, "PNG", pnginfo=info, icc_profile=b"x" * 300, dpi=(72, 72))
    passed, width, height = png_validator.validate(buffer.getvalue(), 1e6)
    assert (width, height) == (20, 10) and b"zTXt" not in passed and b"iCCP" not in passed and b"pHYs" in passed
    assert Image.open(io.BytesIO(passed)).tobytes() == Image.open(io.BytesIO(buffer.getvalue())).tobytes()


def test_webp_passes_with_its_size_and_damage_and_animation_do_not():
    for mode, options in (("RGB", {"lossless": True}), ("RGBA", {"lossless": True}), ("RGB", {}), ("RGBA", {})):
        buffer = io.BytesIO()
        Image.new("RGBA", (31, 17), (9, 8, 7, 100)).convert(mode).save(buffer, "WEBP", **options)
        data = buffer.getvalue()
        assert webp_validator.validate(data, 1e6) == (data, 31, 17)
        for broken in (data[:-1], data + b"\0", data[:20], b"RIFX" + data[4:], data[:8] + b"WAVE" + data[12:]):
            with pytest.raises(png_validator.InvalidImage):
                webp_validator.validate(broken, 1e6)
        with pytest.raises(png_validator.InvalidImage, match="31 x 17"):
            webp_validator.validate(data, 31 * 17 - 1)
    buffer = io.BytesIO()
    frames_ = [Image.effect_noise((16, 16), 50), Image.effect_noise((16, 16), 90)]
    frames_[0].save(buffer, "WEBP", save_all=True, append_images=frames_[1:])
    with pytest.raises(png_validator.InvalidImage):
        webp_validator.validate(buffer.getvalue(), 1e6)


def test_a_folder_is_measured_and_removed_whatever_it_contains(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"x")
    inside.mkdir()
    handle = os.open(inside, os.O_RDONLY)
    for _ in range(600):  # longer than any path may be
        os.mkdir("d" * 20, dir_fd=handle)
        deeper = os.open("d" * 20, os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = deeper
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=handle))
    os.close(handle)
    (inside / "link").symlink_to(outside)
    (inside / "locked").mkdir()
    (inside / "locked" / "large").write_bytes(bytes(100_000))
    assert folders.measure(str(inside), 1 << 30, 10_000).too_deep
    os.chmod(inside / "locked", 0)
    used = folders.measure(str(inside / "locked"), 1 << 30, 10_000)
    assert (used.inodes, used.too_deep) == (1, False) and 100_000 <= used.bytes < 200_000
    assert folders.measure(str(inside), 1 << 30, 3).inodes == 4  # stops above the limit
    folders.remove(str(inside))
    assert not inside.exists() and (outside / "kept").exists()
    assert folders.measure(str(inside), 1, 1).inodes == 0


def _decide(code: bytes, number: int, arguments: tuple[int, ...] = ()) -> int:
    """Evaluates a seccomp filter with an independent interpreter of the BPF instructions used."""
    audit, _ = syscalls.machine()
    data = struct.pack("=iIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    program = [struct.unpack_from("=HBBI", code, i) for i in range(0, len(code), 8)]
    at = accumulator = 0
    while True:
        kind, true, false, constant = program[at]
        at += 1
        if kind == 0x20:
            accumulator = struct.unpack_from("=I", data, constant)[0]
        elif kind == 0x06:
            return constant
        elif kind == 0x05:
            at += constant
        else:
            holds = {0x15: accumulator == constant, 0x35: accumulator >= constant, 0x45: bool(accumulator & constant)}[
                kind
            ]
            at += true if holds else false


@pytest.mark.skipif(syscalls.machine() is None, reason="no call table for this machine")
@pytest.mark.parametrize("own_pid_namespace", [True, False])
def test_the_filter_allows_exactly_what_the_table_says(own_pid_namespace):
    code = seccomp.build_filter(own_pid_namespace=own_pid_namespace, signals_scoped=True, files_in_flight=True, pid=77)
    table = syscalls.machine()[1]
    allow, refuse, unknown = 0x7FFF0000, 0x00050001, 0x00050026
    special = {
        "clone",
        "clone3",
        "socketpair",
        "prlimit64",
        "sched_setaffinity",
        "sched_setscheduler",
        "sched_setparam",
        "setpriority",
        "ioctl",
        "prctl",
        "setsid",
        "setpgid",
        "sync",
        "syncfs",
    }
    open_numbers = {number for name, number in table.items() if name not in syscalls.NOT_ALLOWED}
    special_numbers = {table[name] for name in special}
    for number in range(700):
        if number in special_numbers:
            continue
        expected = allow if number in open_numbers else refuse if number <= max(table.values()) else unknown
        assert _decide(code, number) == expected, number
    assert _decide(code, table["clone"], (0x11,)) == allow
    assert _decide(code, table["clone"], (0x10000011,)) == refuse
    assert _decide(code, table["clone"], (0x8011,)) == refuse
    assert _decide(code, table["clone3"]) == unknown
    assert [_decide(code, table["socketpair"], (family,)) for family in (1, 2, 16)] == [allow, refuse, refuse]
    assert [_decide(code, table["prlimit64"], (pid,)) for pid in (0, 5)] == [allow, refuse]
    assert [_decide(code, table["prctl"], (option,)) for option in (15, 38, 1, 4, 22)] == [
        allow,
        allow,
        refuse,
        refuse,
        refuse,
    ]
    assert [_decide(code, table["setpriority"], who) for who in ((0, 0), (0, 9), (1, 0))] == [allow, refuse, refuse]
    assert [_decide(code, table["ioctl"], (0, request)) for request in (0x5401, 0x5412)] == [allow, refuse]
    assert _decide(code, table["setsid"]) == (allow if own_pid_namespace else 0x00050000)
    assert [_decide(code, table[name]) for name in ("sync", "syncfs")] == [0x00050000] * 2  # pretended success
    assert _decide(code, 0x40000000 + table["read"]) == 0x80000000


@pytest.mark.skipif(syscalls.machine() is None, reason="no call table for this machine")
def test_without_signal_scoping_a_session_may_only_signal_itself():
    code = seccomp.build_filter(own_pid_namespace=False, signals_scoped=False, files_in_flight=False, pid=77)
    table = syscalls.machine()[1]
    assert [_decide(code, table[name]) for name in ("sendmsg", "sendmmsg", "sendto")] == [
        0x00050001,
        0x00050001,
        0x7FFF0000,
    ]
    for name in ("kill", "tgkill"):
        assert [_decide(code, table[name], (pid, 9)) for pid in (77, 78, 1, 2**64 - 1)] == [
            0x7FFF0000,
            0x00050001,
            0x00050001,
            0x00050001,
        ]
    assert _decide(code, table["pidfd_send_signal"]) == 0x00050001
