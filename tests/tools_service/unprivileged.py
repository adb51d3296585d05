"""Runs a command as an unprivileged user of its own, in a mount namespace in which that user can reach the interpreter.

    python unprivileged.py PATH[:PATH...] COMMAND...

The interpreter may be below a folder that only root may enter: in the mount namespace of the command such folders are
covered by empty ones that contain only the paths given. Must be started as root.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from tools_service.sandbox.confinement import linux

# Not the user nobody: RLIMIT_NPROC counts per user id, so a fork bomb in one service would fail the forks of another.
_FIRST_UID, _UIDS = 620_000, 30_000


def main() -> None:
    paths, command = sys.argv[1].split(":"), sys.argv[2:]
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        closed = _closed_folder(path)
        if closed:
            by_folder.setdefault(closed, []).append(path)
    for folder, inside in by_folder.items():
        handles = {path: os.open(path, os.O_PATH) for path in inside}
        linux.mount("tmpfs", folder, "tmpfs", 0, "mode=755")
        for path, handle in handles.items():
            os.makedirs(path, exist_ok=True)
            linux.mount(f"/proc/self/fd/{handle}", path, None, linux.MS_BIND | linux.MS_REC)
    linux.drop_bounding_set()
    os.setgroups([])
    uid = _FIRST_UID + os.getppid() % _UIDS  # one per test process, which then builds one font cache
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.execv(command[0], command)


def _closed_folder(path: str) -> str:
    """Returns the topmost parent folder of `path` that other users may not enter; empty if there is none."""
    folder = ""
    for part in os.path.realpath(path).strip("/").split("/"):
        folder += "/" + part
        if not os.stat(folder).st_mode & 0o001:
            return folder
    return ""


if __name__ == "__main__":
    main()
