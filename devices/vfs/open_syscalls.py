"""open, close and their families: man 2 open, openat2, close, close_range."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Annotated

from devices.args import Fd, Mode, Path, Size, StructArg, UInt
from devices.bus import syscall
from devices.errors import Interrupted, SysError
from devices.task.rlimits import RLIMIT_NOFILE
from devices.vfs.abi import AT_FDCWD, O_CLOEXEC, O_CREAT, O_PATH, O_TRUNC, O_WRONLY, CloseRangeFlags, OpenFlags
from devices.vfs.open import How, how_of, legacy_how, open_path

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.files import OpenFile

HOW = struct.Struct("<QQQ")
"""struct open_how: flags, mode, resolve. OPEN_HOW_SIZE_VER0."""
O_LARGEFILE = 0o100000
OpenHow = Annotated[int, StructArg("open_how", "<QQQ", ("flags", "mode", "resolve"))]
CLOSE_RANGE_UNSHARE, CLOSE_RANGE_CLOEXEC = 2, 4


def install(task: Task, file: OpenFile, cloexec: bool) -> int:
    """A descriptor for a file that none refers to yet; SysError(EMFILE), and the file is closed."""
    try:
        return task.files.install(file, task.process.rlimits[RLIMIT_NOFILE][0], cloexec=cloexec)
    except SysError:
        file.hold().put_locked()
        raise


def do_open(task: Task, dirfd: int, path: bytes, how: How, cloexec: bool) -> int:
    """do_sys_openat2(): a descriptor is to be had before the file is touched."""
    if not task.files.has_room(task.process.rlimits[RLIMIT_NOFILE][0]):
        raise SysError(errno.EMFILE, "RLIMIT_NOFILE")
    return install(task, open_path(task, dirfd, path, how), cloexec)


@syscall("open")
def open_(task: Task, pathname: Path, flags: OpenFlags, mode: Mode) -> int:
    return do_open(task, AT_FDCWD, pathname, legacy_how(flags, mode), bool(flags & O_CLOEXEC))


@syscall("openat")
def openat(task: Task, dirfd: Fd, pathname: Path, flags: OpenFlags, mode: Mode) -> int:
    return do_open(task, dirfd, pathname, legacy_how(flags, mode), bool(flags & O_CLOEXEC))


@syscall("creat")
def creat(task: Task, pathname: Path, mode: Mode) -> int:
    return do_open(task, AT_FDCWD, pathname, legacy_how(O_CREAT | O_WRONLY | O_TRUNC, mode), False)


@syscall("openat2")
def openat2(task: Task, dirfd: Fd, pathname: Path, how: OpenHow, size: Size) -> int:
    """man 2 openat2. A longer struct is taken if what is not known here is zero (copy_struct_from_user())."""
    if size < HOW.size:
        raise SysError(errno.EINVAL, "size of open_how")
    if size > 4096:
        raise SysError(errno.E2BIG, "size of open_how")
    raw = task.memory.read(how, size)
    if any(raw[HOW.size :]):
        raise SysError(errno.E2BIG, "fields of a newer kernel")
    flags, mode, resolve = HOW.unpack_from(raw)
    if not flags & O_PATH:
        flags |= O_LARGEFILE
    return do_open(task, dirfd, pathname, how_of(flags, mode, resolve), bool(flags & O_CLOEXEC))


@syscall("close")
def close(task: Task, fd: Fd) -> int:
    """man 2 close: the descriptor is gone in any case; a call that a signal cut short is not made again."""
    try:
        task.files.close_locked(fd, task)
    except Interrupted as interrupted:
        raise SysError(errno.EINTR) from interrupted
    return 0


@syscall("close_range")
def close_range(task: Task, first: UInt, last: UInt, flags: CloseRangeFlags) -> int:
    """man 2 close_range."""
    if flags & ~(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC) or first > last:
        raise SysError(errno.EINVAL)
    if flags & CLOSE_RANGE_UNSHARE:
        unshare_files_locked(task)
    files = task.files
    for fd in files.numbers():
        if first <= fd <= last:
            if flags & CLOSE_RANGE_CLOEXEC:
                files.set_cloexec(fd, True)
            else:
                files.close_locked(fd)
    return 0


def unshare_files_locked(task: Task) -> None:
    """unshare(CLONE_FILES): a descriptor table of the task's own."""
    process, old = task.process, task.files
    alone = all(other is task or other.files is not old for other in process.tasks.values())
    if alone and old.users == 1:
        return
    task.files = old.copy()
    if old is not process.files:
        old.release_locked()
    elif alone:
        process.files = task.files
        old.release_locked()
