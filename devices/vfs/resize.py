"""What limits a file's size when it is written, truncated or allocated (generic_write_checks(), inode_newsize_ok())."""

from __future__ import annotations

import errno
import signal
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.signals.send import send_locked
from devices.task.rlimits import RLIM_INFINITY, RLIMIT_FSIZE
from devices.vfs.abi import MAX_FILE_SIZE

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.files import Segments
    from devices.vfs.inode import Inode


def check_size(task: Task, inode: Inode, size: int) -> None:
    """May the file get this size? SysError(EFBIG), with SIGXFSZ beyond RLIMIT_FSIZE."""
    if size <= inode.size:
        return
    if size > task.process.rlimits[RLIMIT_FSIZE][0]:
        send_locked(task, signal.SIGXFSZ)
        raise SysError(errno.EFBIG, "RLIMIT_FSIZE")
    if size > MAX_FILE_SIZE:
        raise SysError(errno.EFBIG)


def limited(task: Task, segments: Segments, position: int) -> Segments:
    """generic_write_check_limits(): what of a write at `position` is below the largest size. SysError(EFBIG)."""
    limit = task.process.rlimits[RLIMIT_FSIZE][0]
    if limit == RLIM_INFINITY:
        limit = MAX_FILE_SIZE
    elif position >= limit:
        send_locked(task, signal.SIGXFSZ)
        raise SysError(errno.EFBIG, "RLIMIT_FSIZE")
    if position >= MAX_FILE_SIZE:
        raise SysError(errno.EFBIG)
    room = limit - position
    found = []
    for address, length in segments:
        length = min(length, room)
        room -= length
        found.append((address, length))
    return found
