"""Builds a session's read-only root file system: the interpreter, the allowed packages and nothing else."""

from __future__ import annotations

import os

from tools_service.sandbox.confinement import linux, packages

WORK_FOLDER = "/sandbox"
_BIND = linux.MS_BIND | linux.MS_REC
_READ_ONLY = linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
_DEVICES = ("null", "zero", "full", "random", "urandom")


def enter_private_root(scratch: str, names: tuple[str, ...]) -> None:
    """Builds the private tree below `scratch` and makes it this process's root with `pivot_root`.

    Requires a fresh mount namespace. Sessions forked later add their own work folder and /proc.
    """
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    linux.mount("tmpfs", scratch, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=4m,nr_inodes=8192,mode=755")
    outside = [os.path.realpath(folder) for folder in packages.site_packages_folders()]
    for path in packages.interpreter_paths():
        _bind_read_only(path, scratch)
    for folder in outside:  # hides a site-packages folder inside a tree bound above
        if os.path.isdir(scratch + folder):
            linux.mount(
                "tmpfs", scratch + folder, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,nr_inodes=8192,mode=755"
            )
    for path in packages.package_paths(names):
        _bind_read_only(path, scratch)
    for folder in outside:
        if os.path.ismount(scratch + folder):
            linux.mount("none", scratch + folder, None, _READ_ONLY)
    for folder in ("dev", "proc", WORK_FOLDER[1:]):
        os.makedirs(f"{scratch}/{folder}", exist_ok=True)
    for name in _DEVICES:
        open(f"{scratch}/dev/{name}", "w").close()
        linux.mount(f"/dev/{name}", f"{scratch}/dev/{name}", None, linux.MS_BIND)
    links = {
        "dev/fd": "/proc/self/fd", "dev/stdin": "/proc/self/fd/0", "dev/stdout": "/proc/self/fd/1",
        "dev/stderr": "/proc/self/fd/2", "dev/shm": f"{WORK_FOLDER}/.shm", "tmp": f"{WORK_FOLDER}/.tmp",
    }  # fmt: skip
    for link, target in links.items():
        if not os.path.lexists(f"{scratch}/{link}"):  # /tmp exists if the interpreter is installed below it
            os.symlink(target, f"{scratch}/{link}")
    os.chdir(scratch)
    linux.syscall("pivot_root", b".", b".")
    linux.unmount(".", linux.MNT_DETACH)
    os.chdir("/")
    linux.mount(
        "none", "/", None, linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
    )


def mount_session_folders(disk_mb: int, inodes: int, uid: int, process_list: bool) -> None:
    """Mounts the session's work folder and, if `process_list`, its /proc, in its own mount namespace.

    A user namespace may mount /proc only where a full /proc is still visible; the private root has none.
    """
    options = f"size={disk_mb}m,nr_inodes={inodes},mode=700" + (f",uid={uid},gid={uid}" if process_list else "")
    linux.mount("tmpfs", WORK_FOLDER, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
    if not process_list:
        return
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC | linux.MS_RDONLY
    linux.mount("proc", "/proc", "proc", flags, "subset=pid,hidepid=2")


def _bind_read_only(path: str, scratch: str) -> None:
    """Bind-mounts `path` read-only at the same path below `scratch`; a symbolic link is copied as a link."""
    target = scratch + path
    if os.path.lexists(target):
        return
    parent = os.path.dirname(path)
    if parent != "/" and not os.path.lexists(scratch + parent):
        _make_parent_folders(parent, scratch)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        real = os.path.realpath(path)
        if not os.path.lexists(scratch + real):
            _bind_read_only(real, scratch)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        open(target, "w").close()
    linux.mount(path, target, None, _BIND)
    linux.mount("none", target, None, _READ_ONLY)


def _make_parent_folders(path: str, scratch: str) -> None:
    """Creates the folders of `path` below `scratch`; symbolic links are copied as links."""
    built = ""
    for part in path.strip("/").split("/"):
        built += "/" + part
        if os.path.lexists(scratch + built):
            continue
        if os.path.islink(built):
            os.symlink(os.readlink(built), scratch + built)
            _make_parent_folders(os.path.realpath(built), scratch)
        else:
            os.mkdir(scratch + built)
