"""The file tree of a session: read-only, holding the interpreter and the allowed packages and nothing else."""

from __future__ import annotations

import os

from tools_service.sandbox.confinement import linux, packages

WORK = "/sandbox"
_BIND = linux.MS_BIND | linux.MS_REC
_FROZEN = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
_DEVICES = ("null", "zero", "full", "random", "urandom")


def enter(scratch: str, names: tuple[str, ...]) -> None:
    """Makes the private tree below ``scratch`` and turns it into this process's root, for good.

    The caller is alone in a fresh mount namespace. Sessions forked later add their own work folder and /proc.
    """
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", scratch, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=4m,nr_inodes=8192,mode=755")
    outside = [os.path.realpath(folder) for folder in packages.site_folders()]
    for path in packages.interpreter_paths():
        _bind(path, scratch)
    for folder in outside:  # a site-packages inside a tree bound above is covered up again
        if os.path.isdir(scratch + folder):
            linux.mount(
                "tmpfs", scratch + folder, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,nr_inodes=8192,mode=755"
            )
    for path in packages.package_paths(names):
        _bind(path, scratch)
    for folder in outside:
        if os.path.ismount(scratch + folder):
            linux.mount("none", scratch + folder, None, _FROZEN)
    for folder in ("dev", "proc", WORK[1:]):
        os.makedirs(f"{scratch}/{folder}", exist_ok=True)
    for name in _DEVICES:
        open(f"{scratch}/dev/{name}", "w").close()
        linux.mount(f"/dev/{name}", f"{scratch}/dev/{name}", None, linux.MS_BIND)
    links = {
        "dev/fd": "/proc/self/fd", "dev/stdin": "/proc/self/fd/0", "dev/stdout": "/proc/self/fd/1",
        "dev/stderr": "/proc/self/fd/2", "dev/shm": f"{WORK}/.shm", "tmp": f"{WORK}/.tmp",
    }  # fmt: skip
    for link, target in links.items():
        if not os.path.lexists(f"{scratch}/{link}"):  # /tmp is there when the interpreter lies below it
            os.symlink(target, f"{scratch}/{link}")
    os.chdir(scratch)
    linux.syscall("pivot_root", b".", b".")
    linux.unmount(".", linux.MNT_DETACH)
    os.chdir("/")
    linux.mount(
        "none", "/", None, linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
    )


def add_session(disk_mb: int, inodes: int, uid: int, process_list: bool) -> None:
    """The session's own work folder and process list, in its own mount namespace.

    A user namespace may mount /proc only where a full one is still in sight, which the private tree has not.
    """
    options = f"size={disk_mb}m,nr_inodes={inodes},mode=700" + (f",uid={uid},gid={uid}" if process_list else "")
    linux.mount("tmpfs", WORK, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
    if not process_list:
        return
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC | linux.MS_RDONLY
    linux.mount("proc", "/proc", "proc", flags, "subset=pid,hidepid=2")


def _bind(path: str, scratch: str) -> None:
    """Shows ``path`` read-only at the same place below ``scratch``; a symbolic link is copied as one."""
    target = scratch + path
    if os.path.lexists(target):
        return
    parent = os.path.dirname(path)
    if parent != "/" and not os.path.lexists(scratch + parent):
        _folders(parent, scratch)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        real = os.path.realpath(path)
        if not os.path.lexists(scratch + real):
            _bind(real, scratch)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        open(target, "w").close()
    linux.mount(path, target, None, _BIND)
    linux.mount("none", target, None, _FROZEN)


def _folders(path: str, scratch: str) -> None:
    """Makes the folders that lead to ``path``, links copied as links."""
    built = ""
    for part in path.strip("/").split("/"):
        built += "/" + part
        if os.path.lexists(scratch + built):
            continue
        if os.path.islink(built):
            os.symlink(os.readlink(built), scratch + built)
            _folders(os.path.realpath(built), scratch)
        else:
            os.mkdir(scratch + built)
