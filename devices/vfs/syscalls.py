"""read, write and their families, lseek and ioctl: decode, find the file, let it do the work (fs/read_write.c)."""

from __future__ import annotations

import errno
import struct
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import TYPE_CHECKING, Annotated

from devices.args import BytesArg, Fd, HexArg, Long, Off, Ptr, Size
from devices.bus import syscall
from devices.errors import SysError
from devices.task.rlimits import RLIM_INFINITY, RLIMIT_FSIZE
from devices.vfs import abi
from devices.vfs.abi import MAX_RW_COUNT, O_APPEND, O_NOATIME, UIO_MAXIOV, RwFlags, Whence
from devices.vfs.events import IN_ACCESS, IN_MODIFY, notify
from devices.vfs.permissions import kill_privileges
from devices.vfs.resize import limited

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.files import OpenFile, Segments

InBytes = Annotated[int, BytesArg("count")]
OutBytes = Annotated[int, BytesArg("count", late=True)]
Request = Annotated[int, HexArg("unsigned long", "{r} & 0xFFFFFFFF")]

FAR = 1 << 62
"""Offsets beyond it are looked at more closely."""


def buffer(task: Task, address: int, count: int) -> Segments:
    """One guest buffer, checked and cut as rw_verify_area() does."""
    if count >= 1 << 63:
        raise SysError(errno.EINVAL, "negative count")
    return [(address, min(count, MAX_RW_COUNT))]


def iovec(task: Task, address: int, count: int) -> Segments:
    """The segments of an iovec array (lib/iov_iter.c, import_iovec)."""
    if count > UIO_MAXIOV:
        raise SysError(errno.EINVAL, "more than UIO_MAXIOV segments")
    left = MAX_RW_COUNT
    segments = []
    raw = task.memory.read(address, 16 * count) if count else b""
    for base, length in struct.iter_unpack("<QQ", raw):
        if length >= 1 << 63:
            raise SysError(errno.EINVAL, "negative length")
        length = min(length, left)
        left -= length
        if length:
            segments.append((base, length))
    return segments


# What goes with every read and write


def accessed(task: Task, file: OpenFile) -> None:
    """file_accessed(): the time of access, and the event."""
    path = file.path
    if path is not None:
        if not file.flags & O_NOATIME:
            path.mount.touch(task, path.dentry)
        if task.kernel.vfs.watches:
            notify(task, IN_ACCESS, path)


def before_write(task: Task, file: OpenFile, segments: Segments, offset: int | None) -> Segments:
    """generic_write_checks(), file_remove_privs(): what may be written at `offset` (None: the position)."""
    inode = file.inode
    if inode is None or S_IFMT(inode.mode) != S_IFREG or not segments or not any(n for _, n in segments):
        return segments
    position = file.position if offset is None else offset
    if task.process.rlimits[RLIMIT_FSIZE][0] != RLIM_INFINITY or position > FAR:
        if file.flags & O_APPEND:
            inode.refresh()
            position = inode.size
        segments = limited(task, segments, position)
    if inode.mode & 0o6000:
        kill_privileges(task, inode)
    return segments


def written(task: Task, file: OpenFile, sync: int = 0) -> None:
    """generic_write_sync(), and the event. `sync`: RWF_DSYNC, RWF_SYNC."""
    if file.path is None:
        return
    flags = file.flags
    if flags & abi.O_DSYNC or sync:
        file.fsync(task, not (flags & abi.O_SYNC_BIT or sync & abi.RWF_SYNC))
    if task.kernel.vfs.watches:
        notify(task, IN_MODIFY, file.path)


def check_range(segments: Segments, offset: int) -> None:
    """rw_verify_area(): SysError(EINVAL) for an end that is beyond what an offset can be."""
    if offset > FAR and offset + sum(length for _, length in segments) >= 1 << 63:
        raise SysError(errno.EINVAL, "end of the range")


def do_read(task: Task, file: OpenFile, segments: Segments) -> int:
    count = file.read(task, segments)
    if file.path is not None:
        accessed(task, file)
    return count


def do_write(task: Task, file: OpenFile, segments: Segments) -> int:
    if file.inode is not None:
        segments = before_write(task, file, segments, None)
    count = file.write(task, segments)
    if count and file.path is not None:
        written(task, file)
    return count


def do_pread(task: Task, file: OpenFile, segments: Segments, offset: int) -> int:
    check_range(segments, offset)
    count = file.pread(task, segments, offset)
    if file.path is not None:
        accessed(task, file)
    return count


def do_pwrite(task: Task, file: OpenFile, segments: Segments, offset: int) -> int:
    check_range(segments, offset)
    segments = before_write(task, file, segments, offset)
    count = file.pwrite(task, segments, offset)
    if count and file.path is not None:
        written(task, file)
    return count


# The calls: man 2 read, write, readv, pread


@syscall("read")
def read(task: Task, fd: Fd, buf: OutBytes, count: Size) -> int:
    file = task.files.get(fd)
    file.check_readable()
    return do_read(task, file, buffer(task, buf, count))


@syscall("write")
def write(task: Task, fd: Fd, buf: InBytes, count: Size) -> int:
    file = task.files.get(fd)
    file.check_writable()
    return do_write(task, file, buffer(task, buf, count))


@syscall("readv")
def readv(task: Task, fd: Fd, iov: Ptr, iovcnt: Size) -> int:
    file = task.files.get(fd)
    file.check_readable()
    return do_read(task, file, iovec(task, iov, iovcnt))


@syscall("writev")
def writev(task: Task, fd: Fd, iov: Ptr, iovcnt: Size) -> int:
    file = task.files.get(fd)
    file.check_writable()
    return do_write(task, file, iovec(task, iov, iovcnt))


def readable_at(task: Task, fd: int, offset: int) -> OpenFile:
    """The file, which has offsets and is open for reading. SysError(EINVAL, EBADF, ESPIPE)."""
    if offset < 0:
        raise SysError(errno.EINVAL, "negative offset")
    file = task.files.opened(fd)
    try:
        file.check_readable()
    except SysError:
        file.lseek(0, abi.SEEK_CUR)  # ESPIPE comes first
        raise
    return file


def writable_at(task: Task, fd: int, offset: int) -> OpenFile:
    if offset < 0:
        raise SysError(errno.EINVAL, "negative offset")
    file = task.files.opened(fd)
    try:
        file.check_writable()
    except SysError:
        file.lseek(0, abi.SEEK_CUR)
        raise
    return file


@syscall("pread64")
def pread64(task: Task, fd: Fd, buf: OutBytes, count: Size, offset: Off) -> int:
    return do_pread(task, readable_at(task, fd, offset), buffer(task, buf, count), offset)


@syscall("pwrite64")
def pwrite64(task: Task, fd: Fd, buf: InBytes, count: Size, offset: Off) -> int:
    return do_pwrite(task, writable_at(task, fd, offset), buffer(task, buf, count), offset)


@syscall("preadv")
def preadv(task: Task, fd: Fd, iov: Ptr, iovcnt: Size, pos_l: Off) -> int:
    return do_pread(task, readable_at(task, fd, pos_l), iovec(task, iov, iovcnt), pos_l)


@syscall("pwritev")
def pwritev(task: Task, fd: Fd, iov: Ptr, iovcnt: Size, pos_l: Off) -> int:
    return do_pwrite(task, writable_at(task, fd, pos_l), iovec(task, iov, iovcnt), pos_l)


def check_rw_flags(file: OpenFile, flags: int) -> None:
    """kiocb_set_rw_flags(): SysError(EOPNOTSUPP, EINVAL)."""
    if flags & ~0xFF or flags & (abi.RWF_ATOMIC | abi.RWF_DONTCACHE):
        raise SysError(errno.EOPNOTSUPP, "RWF_* flags")
    if flags & abi.RWF_APPEND and flags & abi.RWF_NOAPPEND:
        raise SysError(errno.EINVAL, "RWF_APPEND and RWF_NOAPPEND")
    if flags & abi.RWF_NOWAIT and not file.supports_nowait:
        raise SysError(errno.EOPNOTSUPP, "RWF_NOWAIT")


class FlagsFor:
    """The file's O_* flags as they are to be for one call: RWF_NOWAIT, RWF_APPEND, RWF_NOAPPEND. For `with`."""

    __slots__ = ("_before", "_file", "_flags")

    def __init__(self, file: OpenFile, flags: int) -> None:
        self._file = file
        self._before = file.flags
        wanted = file.flags
        if flags & abi.RWF_NOWAIT:
            wanted |= abi.O_NONBLOCK
        if flags & abi.RWF_APPEND:
            wanted |= O_APPEND
        if flags & abi.RWF_NOAPPEND:
            wanted &= ~O_APPEND
        self._flags = wanted

    def __enter__(self) -> None:
        self._file.flags = self._flags

    def __exit__(self, *exception: object) -> None:
        self._file.flags = self._before


@syscall("preadv2")
def preadv2(task: Task, fd: Fd, iov: Ptr, iovcnt: Size, pos_l: Off, pos_h: Long, flags: RwFlags) -> int:
    """man 2 preadv2; an offset of -1 is the file's position."""
    here = pos_l == -1
    file = task.files.opened(fd) if here else readable_at(task, fd, pos_l)
    file.check_readable()
    segments = iovec(task, iov, iovcnt)
    check_rw_flags(file, flags)
    with FlagsFor(file, flags & abi.RWF_NOWAIT):
        return do_read(task, file, segments) if here else do_pread(task, file, segments, pos_l)


@syscall("pwritev2")
def pwritev2(task: Task, fd: Fd, iov: Ptr, iovcnt: Size, pos_l: Off, pos_h: Long, flags: RwFlags) -> int:
    here = pos_l == -1
    file = task.files.opened(fd) if here else writable_at(task, fd, pos_l)
    file.check_writable()
    segments = iovec(task, iov, iovcnt)
    check_rw_flags(file, flags)
    with FlagsFor(file, flags):
        count = do_write(task, file, segments) if here else do_pwrite(task, file, segments, pos_l)
    sync = flags & (abi.RWF_DSYNC | abi.RWF_SYNC)
    if sync and count and file.path is not None:
        written(task, file, sync)
    return count


@syscall("lseek")
def lseek(task: Task, fd: Fd, offset: Off, whence: Whence) -> int:
    file = task.files.opened(fd)
    if not 0 <= whence <= abi.SEEK_HOLE:
        raise SysError(errno.EINVAL, "whence")
    return file.lseek(offset, whence)


@syscall("ioctl")
def ioctl(task: Task, fd: Fd, request: Request, argp: Ptr) -> int:
    """man 2 ioctl: what the VFS serves of every file (fs/ioctl.c), then the file's own."""
    file = task.files.opened(fd)
    if request == abi.FIOCLEX or request == abi.FIONCLEX:
        task.files.set_cloexec(fd, request == abi.FIOCLEX)
        return 0
    if request == abi.FIONBIO:
        on = task.memory.read_i32(argp)
        file.flags = file.flags | abi.O_NONBLOCK if on else file.flags & ~abi.O_NONBLOCK
        return 0
    if request == abi.FIOASYNC:
        return _set_async(task, file, task.memory.read_i32(argp))
    inode = file.inode
    if inode is not None:
        if request == abi.FIONREAD and S_IFMT(inode.mode) == S_IFREG:
            inode.refresh()
            task.memory.write_u32(argp, inode.size - file.position)
            return 0
        if request == abi.FIOQSIZE and S_IFMT(inode.mode) in (S_IFREG, S_IFDIR, S_IFLNK):
            inode.refresh()
            task.memory.write_u64(argp, inode.size)
            return 0
        if request == abi.FIGETBSZ:
            task.memory.write_u32(argp, inode.blksize)
            return 0
    return file.ioctl(task, request, argp)


def _set_async(task: Task, file: OpenFile, on: int) -> int:
    """ioctl(FIOASYNC): SIGIO for files that have it."""
    if bool(on) == bool(file.flags & abi.O_ASYNC):
        return 0
    if file.pollers is None:
        raise SysError(errno.ENOTTY, "no SIGIO")
    file.flags ^= abi.O_ASYNC
    return 0
