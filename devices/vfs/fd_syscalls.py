"""dup, fcntl and flock: what is done to descriptors (fs/fcntl.c, fs/locks.c)."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from devices.args import Fd, UInt, ULong
from devices.bus import syscall
from devices.errors import SysError
from devices.task.rlimits import RLIMIT_NOFILE
from devices.vfs import abi, locks
from devices.vfs.abi import O_CLOEXEC, O_PATH, FcntlCmd, LockOperation, OpenFlags
from devices.vfs.permissions import CAP_LEASE, owner_or_capable

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.task.task import Task
    from devices.vfs.files import OpenFile

    Command = Callable[[Task, OpenFile, int, int], int]
    """(task, file, descriptor, argument)."""

OWNER_EX = struct.Struct("<ii")
"""struct f_owner_ex: type, pid."""
RW_HINTS = range(6)
NSIG = 64
PATH_COMMANDS = (
    abi.F_DUPFD, abi.F_DUPFD_CLOEXEC, abi.F_GETFD, abi.F_SETFD, abi.F_GETFL, abi.F_DUPFD_QUERY, abi.F_CREATED_QUERY,
)  # fmt: skip
"""What fcntl(2) does with a descriptor of O_PATH."""


def nofile(task: Task) -> int:
    return int(task.process.rlimits[RLIMIT_NOFILE][0])


@syscall("dup")
def dup(task: Task, oldfd: Fd) -> int:
    return task.files.install(task.files.get(oldfd), nofile(task))


@syscall("dup2")
def dup2(task: Task, oldfd: Fd, newfd: UInt) -> int:
    if oldfd & 0xFFFF_FFFF == newfd:
        task.files.get(oldfd)
        return newfd
    return _dup_to(task, oldfd, newfd, False)


@syscall("dup3")
def dup3(task: Task, oldfd: Fd, newfd: UInt, flags: OpenFlags) -> int:
    if flags & ~O_CLOEXEC or oldfd & 0xFFFF_FFFF == newfd:
        raise SysError(errno.EINVAL)
    return _dup_to(task, oldfd, newfd, bool(flags))


def _dup_to(task: Task, oldfd: int, newfd: int, cloexec: bool) -> int:
    if newfd >= nofile(task):
        raise SysError(errno.EBADF, "RLIMIT_NOFILE")
    task.files.replace_locked(newfd, task.files.get(oldfd), cloexec)
    return newfd


@syscall("fcntl")
def fcntl(task: Task, fd: Fd, cmd: FcntlCmd, arg: ULong) -> int:
    """man 2 fcntl."""
    file = task.files.get(fd)
    if file.flags & O_PATH and cmd not in PATH_COMMANDS:
        raise SysError(errno.EBADF, "opened with O_PATH")
    command = COMMANDS.get(cmd)
    if command is None:
        raise SysError(errno.EINVAL, "command not supported")
    return command(task, file, fd, arg)


def _dupfd(task: Task, file: OpenFile, fd: int, arg: int, cloexec: bool = False) -> int:
    limit = nofile(task)
    lowest = arg & 0xFFFF_FFFF
    if lowest >= limit:
        raise SysError(errno.EINVAL, "above RLIMIT_NOFILE")
    return task.files.install(file, limit, lowest=lowest, cloexec=cloexec)


def _dupfd_cloexec(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    return _dupfd(task, file, fd, arg, True)


def _getfd(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    return int(task.files.cloexec(fd))


def _setfd(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    task.files.set_cloexec(fd, bool(arg & abi.FD_CLOEXEC))
    return 0


def _getfl(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    return file.flags


def _setfl(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    """setfl()."""
    inode = file.inode
    if arg & abi.O_NOATIME and not file.flags & abi.O_NOATIME and inode and not owner_or_capable(task, inode):
        raise SysError(errno.EPERM, "O_NOATIME")
    if arg & abi.O_DIRECT and not file.supports_direct:
        raise SysError(errno.EINVAL, "O_DIRECT")
    mask = abi.SETFL_MASK if file.pollers is None else abi.SETFL_MASK | abi.O_ASYNC
    file.flags = file.flags & ~mask | arg & mask
    return 0


def _dupfd_query(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    """Is the descriptor `arg` of the same open file description?"""
    return int(task.files.get(arg & 0xFFFF_FFFF) is file)


def _created_query(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    """Did open(O_CREAT) make the file?"""
    return int(file.created)


# Owners of signals


def _setown(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    who = (arg & 0xFFFF_FFFF ^ 1 << 31) - (1 << 31)
    if who == -(1 << 31):
        raise SysError(errno.EINVAL)
    return _own(task, file, abi.F_OWNER_PID if who >= 0 else abi.F_OWNER_PGRP, abs(who))


def _own(task: Task, file: OpenFile, kind: int, number: int) -> int:
    if number and not _owner_exists(task, kind, number):
        raise SysError(errno.ESRCH)
    file.owner = (kind, number)
    return 0


def _owner_exists(task: Task, kind: int, number: int) -> bool:
    kernel = task.kernel
    if kind == abi.F_OWNER_TID:
        return number in kernel.tasks
    if kind == abi.F_OWNER_PID:
        return number in kernel.tasks or number in kernel.processes
    return any(process.pgid == number for process in kernel.processes.values())


def _getown(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    """A process group is negative, which the C library tells from an error."""
    kind, number = file.owner
    if not number or not _owner_exists(task, kind, number):
        return 0
    return -number if kind == abi.F_OWNER_PGRP else number


def _setown_ex(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    kind, number = task.memory.read_struct(arg, OWNER_EX)
    if kind not in (abi.F_OWNER_TID, abi.F_OWNER_PID, abi.F_OWNER_PGRP):
        raise SysError(errno.EINVAL)
    return _own(task, file, kind, number)


def _getown_ex(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    kind, number = file.owner
    task.memory.write(arg, OWNER_EX.pack(kind, number if number and _owner_exists(task, kind, number) else 0))
    return 0


def _setsig(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    if arg > NSIG:
        raise SysError(errno.EINVAL, "no signal")
    file.signal = arg
    return 0


def _getsig(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    return file.signal


# Pipes, memfds, hints


def _getpipe_sz(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    return file.capacity()


def _setpipe_sz(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    return file.set_capacity(task, arg & 0xFFFF_FFFF)


def _get_seals(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    return file.seals()


def _add_seals(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    if arg >> 32:
        raise SysError(errno.EINVAL, "seals")
    file.add_seals(task, arg)
    return 0


def _get_rw_hint(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    """How long what is written will live: kept with the file, for whoever asks."""
    task.memory.write_u64(arg, file.write_hint)
    return 0


def _set_rw_hint(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    hint = task.memory.read_u64(arg)
    if file.inode is not None and not owner_or_capable(task, file.inode):
        raise SysError(errno.EPERM)
    if hint not in RW_HINTS:
        raise SysError(errno.EINVAL, "hint")
    file.write_hint = hint
    return 0


# Locks and leases


def _getlk(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    return locks.get_lock(task, file, arg, False)


def _setlk(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    return locks.set_lock_locked(task, file, fd, arg, ofd=False, wait=False)


def _setlkw(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    return locks.set_lock_locked(task, file, fd, arg, ofd=False, wait=True)


def _ofd_getlk(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    return locks.get_lock(task, file, arg, True)


def _ofd_setlk(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    return locks.set_lock_locked(task, file, fd, arg, ofd=True, wait=False)


def _ofd_setlkw(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    return locks.set_lock_locked(task, file, fd, arg, ofd=True, wait=True)


def _setlease(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    inode = file.inode
    if inode is None:
        raise SysError(errno.EINVAL, "no regular file")
    if task.credentials.fsuid != inode.uid and not task.credentials.capable(CAP_LEASE):
        raise SysError(errno.EACCES, "not the owner's")
    return locks.set_lease_locked(inode)


def _getlease(task: Task, file: OpenFile, fd: int, arg: int) -> int:
    return locks.get_lease()


COMMANDS: dict[int, Command] = {
    abi.F_DUPFD: _dupfd,
    abi.F_DUPFD_CLOEXEC: _dupfd_cloexec,
    abi.F_GETFD: _getfd,
    abi.F_SETFD: _setfd,
    abi.F_GETFL: _getfl,
    abi.F_SETFL: _setfl,
    abi.F_DUPFD_QUERY: _dupfd_query,
    abi.F_CREATED_QUERY: _created_query,
    abi.F_SETOWN: _setown,
    abi.F_GETOWN: _getown,
    abi.F_SETOWN_EX: _setown_ex,
    abi.F_GETOWN_EX: _getown_ex,
    abi.F_SETSIG: _setsig,
    abi.F_GETSIG: _getsig,
    abi.F_GETPIPE_SZ: _getpipe_sz,
    abi.F_SETPIPE_SZ: _setpipe_sz,
    abi.F_GET_SEALS: _get_seals,
    abi.F_ADD_SEALS: _add_seals,
    abi.F_GET_RW_HINT: _get_rw_hint,
    abi.F_SET_RW_HINT: _set_rw_hint,
    abi.F_GETLK: _getlk,
    abi.F_SETLK: _setlk,
    abi.F_SETLKW: _setlkw,
    abi.F_OFD_GETLK: _ofd_getlk,
    abi.F_OFD_SETLK: _ofd_setlk,
    abi.F_OFD_SETLKW: _ofd_setlkw,
    abi.F_SETLEASE: _setlease,
    abi.F_GETLEASE: _getlease,
}


@syscall("flock")
def flock(task: Task, fd: Fd, operation: LockOperation) -> int:
    """man 2 flock."""
    kind = operation & ~abi.LOCK_NB
    if operation & abi.LOCK_MAND:
        return 0  # mandatory locks are gone; the kernel warns and does nothing
    if kind not in (abi.LOCK_SH, abi.LOCK_EX, abi.LOCK_UN):
        raise SysError(errno.EINVAL, "operation")
    file = task.files.opened(fd)
    if kind != abi.LOCK_UN and file.flags & abi.O_ACCMODE == abi.O_ACCMODE:
        raise SysError(errno.EBADF, "neither readable nor writable")
    return locks.flock_locked(task, file, kind, not operation & abi.LOCK_NB)
