"""From a place to its name: getcwd, what /proc/self/fd shows, mountinfo (fs/d_path.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.mount import Mount
    from devices.vfs.path import Dentry, Path


def prepend(path: Path, root: Path | None) -> tuple[bytes, bool]:
    """prepend_path(): the name of `path` as seen from `root`, and whether `root` was met on the way up."""
    mount, dentry = path
    parts: list[bytes] = []
    while root is None or dentry is not root.dentry or mount is not root.mount:
        if dentry is mount.root:
            above, place = mount.parent, mount.mountpoint
            if above is None or place is None:
                return b"/" + b"/".join(reversed(parts)), False
            mount, dentry = above, place
            continue
        parent = dentry.parent
        if parent is dentry:
            return b"/" + b"/".join(reversed(parts)), False  # moved out of the mount's part of the file system
        parts.append(dentry.name)
        dentry = parent
    return b"/" + b"/".join(reversed(parts)), True


def path_name(task: Task, path: Path) -> bytes:
    """d_path(): the name of a file for /proc/self/fd, /proc/self/maps: with ` (deleted)` when its name is gone."""
    dentry = path.dentry
    if dentry.parent is dentry and dentry is not path.mount.root:
        own = dentry.inode.sb.name_of(dentry)
        if own is not None:
            return own
    name, _ = prepend(path, task.process.fs.root)
    return name + b" (deleted)" if dentry.unlinked else name


def current_directory(task: Task) -> bytes:
    """getcwd(2): SysError(ENOENT) for a removed one; `(unreachable)` before one that is not below the root."""
    fs = task.process.fs
    if fs.cwd.dentry.unlinked:
        raise SysError(errno.ENOENT, "the directory was removed")
    name, reachable = prepend(fs.cwd, fs.root)
    return name if reachable else b"(unreachable)" + name


def dentry_name(dentry: Dentry) -> bytes:
    """The name within its file system (the root column of mountinfo), with `//deleted`."""
    parts: list[bytes] = []
    at = dentry
    while at.parent is not at:
        parts.append(at.name)
        at = at.parent
    name = b"/" + b"/".join(reversed(parts))
    return name + b"//deleted" if dentry.unlinked else name


def is_reachable(mount: Mount, dentry: Dentry, root: Path) -> bool:
    """is_path_reachable(): is the place below `root`?"""
    while mount is not root.mount:
        above, place = mount.parent, mount.mountpoint
        if above is None or place is None:
            return False
        mount, dentry = above, place
    return dentry.is_under(root.dentry)
