"""The one place that every access and change of a file passes which inotify and fanotify report (fs/notify/fsnotify.c).

While nobody watches anything in the machine (`kernel.vfs.watches` is 0), passing it costs one comparison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.inode import Inode
    from devices.vfs.path import Path

# <linux/inotify.h>; fanotify's FAN_* have the same values
IN_ACCESS, IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_CLOSE_NOWRITE, IN_OPEN = (1 << i for i in range(6))
IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF = (1 << i for i in range(6, 12))
IN_UNMOUNT, IN_ISDIR = 0x2000, 0x40000000
FAN_OPEN_EXEC = 0x1000


class Event(NamedTuple):
    """What happened."""

    task: Task | None
    mask: int
    """IN_*."""
    inode: Inode
    """The file; for what happens to a name (IN_CREATE, IN_DELETE, IN_MOVED_*), the file of that name."""
    directory: Inode | None
    """The directory that it is in, if it was reached by a name."""
    name: bytes
    path: Path | None
    """How it was reached, where that is known."""
    cookie: int
    """The same for the two halves of a rename."""


def notify(task: Task, mask: int, path: Path) -> None:
    """The file at `path` was accessed or changed."""
    vfs = task.kernel.vfs
    if vfs.watches:
        dentry = path.dentry
        directory = dentry.parent.inode if dentry.parent is not dentry else None
        vfs.on_event(Event(task, mask, dentry.inode, directory, dentry.name, path, 0))


def notify_name(task: Task, mask: int, directory: Path, name: bytes, inode: Inode, cookie: int = 0) -> None:
    """Something happened to a name in a directory: IN_CREATE, IN_DELETE, IN_MOVED_FROM, IN_MOVED_TO."""
    vfs = task.kernel.vfs
    if vfs.watches:
        vfs.on_event(Event(task, mask, inode, directory.inode, name, directory, cookie))


def notify_close(file: OpenFile, path: Path) -> None:
    """The last descriptor of a file is gone: IN_CLOSE_WRITE if it could be written."""
    vfs = path.mount.vfs
    if vfs.watches:
        dentry = path.dentry
        mask = IN_CLOSE_WRITE if file.may_write else IN_CLOSE_NOWRITE
        directory = dentry.parent.inode if dentry.parent is not dentry else None
        vfs.on_event(Event(None, mask, dentry.inode, directory, dentry.name, path, 0))


def notify_file(task: Task, mask: int, file: OpenFile) -> None:
    """The file behind a descriptor was accessed or changed."""
    if task.kernel.vfs.watches and file.path is not None:
        notify(task, mask, file.path)
