"""read, write, open, stat and their families: decode, find the file, let it do the work."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Annotated

from devices.args import BytesArg, Fd, HexArg, Int, Long, Mode, Off, Path, Ptr, Size, UInt, ULong
from devices.bus import syscall
from devices.errors import SysError
from devices.fs.hostfile import HostFile
from devices.task.rlimits import RLIMIT_NOFILE
from devices.vfs import abi
from devices.vfs.abi import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    MAX_RW_COUNT,
    O_CLOEXEC,
    UIO_MAXIOV,
    AccessMode,
    AtFlags,
    CloseRangeFlags,
    FcntlCmd,
    OpenFlags,
    RwFlags,
    Whence,
)

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.files import Segments

InBytes = Annotated[int, BytesArg("count")]
OutBytes = Annotated[int, BytesArg("count", late=True)]
LinkBytes = Annotated[int, BytesArg("bufsiz", late=True)]
Request = Annotated[int, HexArg("unsigned long", "{r} & 0xFFFFFFFF")]

# Reading and writing: man 2 read, write, readv, pread


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


@syscall("read")
def read(task: Task, fd: Fd, buf: OutBytes, count: Size) -> int:
    file = task.files.get(fd)
    file.check_readable()
    return file.read(task, buffer(task, buf, count))


@syscall("write")
def write(task: Task, fd: Fd, buf: InBytes, count: Size) -> int:
    file = task.files.get(fd)
    file.check_writable()
    return file.write(task, buffer(task, buf, count))


@syscall("readv")
def readv(task: Task, fd: Fd, iov: Ptr, iovcnt: Size) -> int:
    file = task.files.get(fd)
    file.check_readable()
    return file.read(task, iovec(task, iov, iovcnt))


@syscall("writev")
def writev(task: Task, fd: Fd, iov: Ptr, iovcnt: Size) -> int:
    file = task.files.get(fd)
    file.check_writable()
    return file.write(task, iovec(task, iov, iovcnt))


def offset_of(offset: int) -> int:
    if offset < 0:
        raise SysError(errno.EINVAL, "negative offset")
    return offset


@syscall("pread64")
def pread64(task: Task, fd: Fd, buf: OutBytes, count: Size, offset: Off) -> int:
    position = offset_of(offset)
    file = task.files.get(fd)
    file.check_readable()
    return file.pread(task, buffer(task, buf, count), position)


@syscall("pwrite64")
def pwrite64(task: Task, fd: Fd, buf: InBytes, count: Size, offset: Off) -> int:
    position = offset_of(offset)
    file = task.files.get(fd)
    file.check_writable()
    return file.pwrite(task, buffer(task, buf, count), position)


@syscall("preadv")
def preadv(task: Task, fd: Fd, iov: Ptr, iovcnt: Size, pos_l: Off) -> int:
    position = offset_of(pos_l)
    file = task.files.get(fd)
    file.check_readable()
    return file.pread(task, iovec(task, iov, iovcnt), position)


@syscall("pwritev")
def pwritev(task: Task, fd: Fd, iov: Ptr, iovcnt: Size, pos_l: Off) -> int:
    position = offset_of(pos_l)
    file = task.files.get(fd)
    file.check_writable()
    return file.pwrite(task, iovec(task, iov, iovcnt), position)


def no_rw_flags(flags: int) -> None:
    if flags:
        raise SysError(errno.EOPNOTSUPP, "RWF_* flags")


@syscall("preadv2")
def preadv2(task: Task, fd: Fd, iov: Ptr, iovcnt: Size, pos_l: Off, pos_h: Long, flags: RwFlags) -> int:
    no_rw_flags(flags)
    return readv(task, fd, iov, iovcnt) if pos_l == -1 else preadv(task, fd, iov, iovcnt, pos_l)


@syscall("pwritev2")
def pwritev2(task: Task, fd: Fd, iov: Ptr, iovcnt: Size, pos_l: Off, pos_h: Long, flags: RwFlags) -> int:
    no_rw_flags(flags)
    return writev(task, fd, iov, iovcnt) if pos_l == -1 else pwritev(task, fd, iov, iovcnt, pos_l)


@syscall("lseek")
def lseek(task: Task, fd: Fd, offset: Off, whence: Whence) -> int:
    return task.files.get(fd).lseek(offset, whence)


@syscall("ioctl")
def ioctl(task: Task, fd: Fd, request: Request, argp: Ptr) -> int:
    return task.files.get(fd).ioctl(task, request, argp)


# Paths: the booted file is the only one there is


def image_at(task: Task, path: bytes) -> HostFile | None:
    """The booted file, opened, if `path` names it."""
    image = task.kernel.image
    if image is not None and path in (image.path, b"/proc/self/exe"):
        return HostFile(image, 0)
    return None


def lookup(task: Task, dirfd: int, path: bytes) -> HostFile:
    if not path:
        raise SysError(errno.ENOENT, "empty path")
    if not path.startswith(b"/") and dirfd != AT_FDCWD:
        task.files.get(dirfd)
        raise SysError(errno.ENOTDIR, "no directory is open")
    found = image_at(task, path)
    if found is None:
        raise SysError(errno.ENOENT)
    return found


@syscall("open")
def open_(task: Task, pathname: Path, flags: OpenFlags, mode: Mode) -> int:
    return openat(task, AT_FDCWD, pathname, flags, mode)


@syscall("openat")
def openat(task: Task, dirfd: Fd, pathname: Path, flags: OpenFlags, mode: Mode) -> int:
    if flags & abi.O_CREAT and image_at(task, pathname) is None:
        raise SysError(errno.EROFS, "there is no file system to create it in")
    found = lookup(task, dirfd, pathname)
    if flags & abi.O_CREAT and flags & abi.O_EXCL:
        raise SysError(errno.EEXIST)
    if flags & abi.O_DIRECTORY:
        raise SysError(errno.ENOTDIR)
    file = HostFile(found.backing, flags & ~(O_CLOEXEC | abi.O_CREAT | abi.O_EXCL | abi.O_NOCTTY | abi.O_TRUNC))
    limit = task.process.rlimits[RLIMIT_NOFILE][0]
    return task.files.install(file, limit, cloexec=bool(flags & O_CLOEXEC))


@syscall("close")
def close(task: Task, fd: Fd) -> int:
    task.files.close_locked(fd)
    return 0


@syscall("close_range")
def close_range(task: Task, first: UInt, last: UInt, flags: CloseRangeFlags) -> int:
    if flags & ~6 or first > last:
        raise SysError(errno.EINVAL)
    for fd in task.files.numbers():
        if first <= fd <= last:
            if flags & 4:
                task.files.set_cloexec(fd, True)
            else:
                task.files.close_locked(fd)
    return 0


@syscall("fstat")
def fstat(task: Task, fd: Fd, statbuf: Ptr) -> int:
    task.memory.write(statbuf, abi.pack_stat(task.files.get(fd).stat()))
    return 0


@syscall("stat")
def stat(task: Task, pathname: Path, statbuf: Ptr) -> int:
    return newfstatat(task, AT_FDCWD, pathname, statbuf, 0)


@syscall("lstat")
def lstat(task: Task, pathname: Path, statbuf: Ptr) -> int:
    return newfstatat(task, AT_FDCWD, pathname, statbuf, abi.AT_SYMLINK_NOFOLLOW)


@syscall("newfstatat")
def newfstatat(task: Task, dirfd: Fd, pathname: Path, statbuf: Ptr, flags: AtFlags) -> int:
    if flags & ~(abi.AT_SYMLINK_NOFOLLOW | abi.AT_NO_AUTOMOUNT | AT_EMPTY_PATH):
        raise SysError(errno.EINVAL, "unknown flag")
    if not pathname and flags & AT_EMPTY_PATH and dirfd != AT_FDCWD:
        return fstat(task, dirfd, statbuf)
    task.memory.write(statbuf, abi.pack_stat(lookup(task, dirfd, pathname).stat()))
    return 0


@syscall("access")
def access(task: Task, pathname: Path, mode: AccessMode) -> int:
    return faccessat2(task, AT_FDCWD, pathname, mode, 0)


@syscall("faccessat")
def faccessat(task: Task, dirfd: Fd, pathname: Path, mode: AccessMode) -> int:
    return faccessat2(task, dirfd, pathname, mode, 0)


@syscall("faccessat2")
def faccessat2(task: Task, dirfd: Fd, pathname: Path, mode: AccessMode, flags: AtFlags) -> int:
    if mode & ~7 or flags & ~(abi.AT_EACCESS | abi.AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise SysError(errno.EINVAL)
    lookup(task, dirfd, pathname)
    if mode & 2:
        raise SysError(errno.EROFS, "the image is read-only")
    return 0


@syscall("readlink")
def readlink(task: Task, pathname: Path, buf: LinkBytes, bufsiz: Int) -> int:
    return readlinkat(task, AT_FDCWD, pathname, buf, bufsiz)


@syscall("readlinkat")
def readlinkat(task: Task, dirfd: Fd, pathname: Path, buf: LinkBytes, bufsiz: Int) -> int:
    if bufsiz <= 0:
        raise SysError(errno.EINVAL, "no room")
    if pathname != b"/proc/self/exe":
        lookup(task, dirfd, pathname)
        raise SysError(errno.EINVAL, "not a symbolic link")
    target = task.process.exe[:bufsiz]
    task.memory.write(buf, target)
    return len(target)


@syscall("getcwd")
def getcwd(task: Task, buf: Ptr, size: ULong) -> int:
    """The kernel's call returns the length with the NUL."""
    if size < 2:
        raise SysError(errno.ERANGE)
    task.memory.write(buf, b"/\0")
    return 2


# Descriptors: man 2 dup, fcntl


def nofile(task: Task) -> int:
    return int(task.process.rlimits[RLIMIT_NOFILE][0])


@syscall("dup")
def dup(task: Task, oldfd: Fd) -> int:
    return task.files.install(task.files.get(oldfd), nofile(task))


@syscall("dup2")
def dup2(task: Task, oldfd: Fd, newfd: UInt) -> int:
    if oldfd == newfd:
        task.files.get(oldfd)
        return newfd
    return _dup_to(task, oldfd, newfd, False)


@syscall("dup3")
def dup3(task: Task, oldfd: Fd, newfd: UInt, flags: OpenFlags) -> int:
    if flags & ~O_CLOEXEC or oldfd == newfd:
        raise SysError(errno.EINVAL)
    return _dup_to(task, oldfd, newfd, bool(flags))


def _dup_to(task: Task, oldfd: int, newfd: int, cloexec: bool) -> int:
    if newfd >= nofile(task):
        raise SysError(errno.EBADF, "RLIMIT_NOFILE")
    task.files.replace_locked(newfd, task.files.get(oldfd), cloexec)
    return newfd


@syscall("fcntl")
def fcntl(task: Task, fd: Fd, cmd: FcntlCmd, arg: ULong) -> int:
    file = task.files.get(fd)
    if cmd in (abi.F_DUPFD, abi.F_DUPFD_CLOEXEC):
        limit = nofile(task)
        lowest = arg & 0xFFFF_FFFF
        if lowest >= limit:
            raise SysError(errno.EINVAL, "above RLIMIT_NOFILE")
        return task.files.install(file, limit, lowest=lowest, cloexec=cmd == abi.F_DUPFD_CLOEXEC)
    if cmd == abi.F_GETFD:
        return int(task.files.cloexec(fd))
    if cmd == abi.F_SETFD:
        task.files.set_cloexec(fd, bool(arg & abi.FD_CLOEXEC))
        return 0
    if cmd == abi.F_GETFL:
        return file.flags | abi.O_LARGEFILE
    if cmd == abi.F_SETFL:
        file.flags = file.flags & ~abi.SETFL_MASK | arg & abi.SETFL_MASK
        return 0
    raise SysError(errno.EINVAL, "command not supported")
