"""name_to_handle_at and open_by_handle_at: no file system here gives out handles (fs/fhandle.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.args import Fd, Path, Ptr
from devices.bus import syscall
from devices.errors import SysError
from devices.vfs.abi import AT_EMPTY_PATH, AT_HANDLE_FID, AT_SYMLINK_FOLLOW, AtFlags, OpenFlags
from devices.vfs.arguments import place_following
from devices.vfs.permissions import CAP_DAC_READ_SEARCH

if TYPE_CHECKING:
    from devices.task.task import Task

MAX_HANDLE_SZ = 128


@syscall("name_to_handle_at")
def name_to_handle_at(task: Task, dirfd: Fd, pathname: Path, handle: Ptr, mount_id: Ptr, flags: AtFlags) -> int:
    """man 2 name_to_handle_at: EOPNOTSUPP, as of a file system without export operations."""
    if flags & ~(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH | AT_HANDLE_FID | 3):
        raise SysError(errno.EINVAL, "unknown flag")
    place_following(task, dirfd, pathname, flags)
    raise SysError(errno.EOPNOTSUPP, "no file handles")


@syscall("open_by_handle_at")
def open_by_handle_at(task: Task, mount_fd: Fd, handle: Ptr, flags: OpenFlags) -> int:
    """man 2 open_by_handle_at: no handle is valid."""
    task.files.get(mount_fd)
    if not task.credentials.capable(CAP_DAC_READ_SEARCH):
        raise SysError(errno.EPERM, "CAP_DAC_READ_SEARCH")
    if not 0 < task.memory.read_u32(handle) <= MAX_HANDLE_SZ:
        raise SysError(errno.EINVAL, "handle_bytes")
    raise SysError(errno.ESTALE, "no file handles")
