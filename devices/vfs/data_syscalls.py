"""truncate, fallocate, fsync and what else is about contents but moves none; getdents (fs/open.c, fs/sync.c)."""

from __future__ import annotations

import errno
import struct
from stat import S_IFBLK, S_IFDIR, S_IFIFO, S_IFMT, S_IFREG
from typing import TYPE_CHECKING, Annotated

from devices.args import EnumSet, Fd, FlagSet, Off, Path, Ptr, Size, UInt
from devices.bus import syscall
from devices.errors import SysError
from devices.vfs import abi
from devices.vfs.abi import AT_FDCWD, MAX_FILE_SIZE, MAY_WRITE, FallocateMode
from devices.vfs.events import IN_ACCESS, IN_MODIFY, notify, notify_file
from devices.vfs.path import LOOKUP_FOLLOW, walk
from devices.vfs.permissions import inode_permission, kill_privileges, want_write
from devices.vfs.resize import check_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.inode import Entry

DIRENT = struct.Struct("<QqH")
"""struct linux_dirent64 up to d_type and d_name, and linux_dirent up to d_name: d_ino, d_off, d_reclen."""
ADVICE = {
    "POSIX_FADV_NORMAL": 0, "POSIX_FADV_RANDOM": 1, "POSIX_FADV_SEQUENTIAL": 2, "POSIX_FADV_WILLNEED": 3,
    "POSIX_FADV_DONTNEED": 4, "POSIX_FADV_NOREUSE": 5,
}  # fmt: skip
Advice = Annotated[int, EnumSet(ADVICE)]
SyncRange = Annotated[int, FlagSet({"WAIT_BEFORE": 1, "WRITE": 2, "WAIT_AFTER": 4})]


# Sizes


@syscall("truncate")
def truncate(task: Task, path: Path, length: Off) -> int:
    """man 2 truncate."""
    if length < 0:
        raise SysError(errno.EINVAL, "negative length")
    place = walk(task, AT_FDCWD, path, LOOKUP_FOLLOW)
    inode = place.inode
    kind = S_IFMT(inode.mode)
    if kind == S_IFDIR:
        raise SysError(errno.EISDIR)
    if kind != S_IFREG:
        raise SysError(errno.EINVAL, "no regular file")
    want_write(place.mount)
    inode_permission(task, inode, MAY_WRITE)
    if inode.writers < 0:
        raise SysError(errno.ETXTBSY)
    inode.refresh()
    check_size(task, inode, length)
    kill_privileges(task, inode)
    inode.setattr(size=length)
    notify(task, IN_MODIFY, place)
    return 0


@syscall("ftruncate")
def ftruncate(task: Task, fd: Fd, length: Off) -> int:
    """man 2 ftruncate."""
    if length < 0:
        raise SysError(errno.EINVAL, "negative length")
    file = task.files.opened(fd)
    inode = file.inode
    if inode is None or S_IFMT(inode.mode) != S_IFREG or not file.may_write:
        raise SysError(errno.EINVAL, "no regular file that is open for writing")
    inode.refresh()
    check_size(task, inode, length)
    kill_privileges(task, inode)
    file.truncate(task, length)
    notify_file(task, IN_MODIFY, file)
    return 0


@syscall("fallocate")
def fallocate(task: Task, fd: Fd, mode: FallocateMode, offset: Off, len: Off) -> int:
    """man 2 fallocate."""
    file = task.files.opened(fd)
    check_fallocate(file, mode, offset, len)
    inode = file.inode
    if inode is not None:
        inode.refresh()
        if not mode & (abi.FALLOC_FL_KEEP_SIZE | abi.FALLOC_FL_COLLAPSE_RANGE | abi.FALLOC_FL_INSERT_RANGE):
            check_size(task, inode, offset + len)
        kill_privileges(task, inode)
    file.fallocate(task, mode, offset, len)
    notify_file(task, IN_MODIFY, file)
    return 0


FALLOCATE_ALONE = (abi.FALLOC_FL_COLLAPSE_RANGE, abi.FALLOC_FL_INSERT_RANGE, abi.FALLOC_FL_WRITE_ZEROES)
FALLOCATE_MODES = (
    0, abi.FALLOC_FL_UNSHARE_RANGE, abi.FALLOC_FL_ZERO_RANGE, abi.FALLOC_FL_PUNCH_HOLE, *FALLOCATE_ALONE,
)  # fmt: skip


def check_fallocate(file: OpenFile, mode: int, offset: int, length: int) -> None:
    """vfs_fallocate(): SysError(EINVAL, EOPNOTSUPP, EBADF, ESPIPE, EISDIR, ENODEV, EFBIG)."""
    if offset < 0 or length <= 0:
        raise SysError(errno.EINVAL, "range")
    keep = mode & abi.FALLOC_FL_KEEP_SIZE
    kind = mode & ~abi.FALLOC_FL_KEEP_SIZE
    if kind not in FALLOCATE_MODES or (kind == abi.FALLOC_FL_PUNCH_HOLE and not keep):
        raise SysError(errno.EOPNOTSUPP, "mode")
    if keep and kind in FALLOCATE_ALONE:
        raise SysError(errno.EOPNOTSUPP, "mode")
    if not file.may_write:
        raise SysError(errno.EBADF, "not open for writing")
    kind = S_IFMT(file.inode.mode) if file.inode is not None else S_IFIFO
    if kind == S_IFIFO:
        raise SysError(errno.ESPIPE)
    if kind == S_IFDIR:
        raise SysError(errno.EISDIR)
    if kind not in (S_IFREG, S_IFBLK):
        raise SysError(errno.ENODEV)
    if offset + length > MAX_FILE_SIZE:
        raise SysError(errno.EFBIG)


# Advice


@syscall("fadvise64")
def fadvise64(task: Task, fd: Fd, offset: Off, len: Off, advice: Advice) -> int:
    """man 2 posix_fadvise: only what cannot be advice is refused; the file may do as it likes."""
    file = task.files.opened(fd)
    if (file.inode is not None and S_IFMT(file.inode.mode) == S_IFIFO) or _is_stream(file):
        raise SysError(errno.ESPIPE)
    if len < 0 or not 0 <= advice <= 5:
        raise SysError(errno.EINVAL)
    file.advise(task, offset, len, advice)
    return 0


def _is_stream(file: OpenFile) -> bool:
    """Is it a pipe without an inode here?"""
    return file.inode is None and S_IFMT(file.stat().st_mode) == S_IFIFO


@syscall("readahead")
def readahead(task: Task, fd: Fd, offset: Off, count: Size) -> int:
    """man 2 readahead."""
    file = task.files.opened(fd)
    file.check_readable()
    if file.inode is None or S_IFMT(file.inode.mode) not in (S_IFREG, S_IFBLK):
        raise SysError(errno.EINVAL, "no regular file")
    file.advise(task, offset, count, ADVICE["POSIX_FADV_WILLNEED"])
    return 0


# Writing back


@syscall("sync")
def sync(task: Task) -> int:
    """man 2 sync: every file system of the machine."""
    for sb in {mount.sb for mount in task.kernel.vfs.mounts.values()}:
        sb.sync()
    return 0


@syscall("syncfs")
def syncfs(task: Task, fd: Fd) -> int:
    path = task.files.opened(fd).path
    if path is not None:
        path.mount.sb.sync()
    return 0


@syscall("fsync")
def fsync(task: Task, fd: Fd) -> int:
    task.files.opened(fd).fsync(task, False)
    return 0


@syscall("fdatasync")
def fdatasync(task: Task, fd: Fd) -> int:
    task.files.opened(fd).fsync(task, True)
    return 0


@syscall("sync_file_range")
def sync_file_range(task: Task, fd: Fd, offset: Off, nbytes: Off, flags: SyncRange) -> int:
    """man 2 sync_file_range. All of the file's data is written, which does more than was asked."""
    file = task.files.opened(fd)
    if flags & ~7 or offset < 0 or nbytes < 0 or offset + nbytes >= 1 << 63:
        raise SysError(errno.EINVAL)
    kind = S_IFMT(file.inode.mode) if file.inode is not None else S_IFIFO
    if kind not in (S_IFREG, S_IFBLK, S_IFDIR, 0o120000):
        raise SysError(errno.ESPIPE)
    if flags and kind == S_IFREG:
        file.fsync(task, True)
    return 0


# Directories


@syscall("getdents64")
def getdents64(task: Task, fd: Fd, dirp: Ptr, count: UInt) -> int:
    """man 2 getdents: struct linux_dirent64."""
    return read_directory(task, fd, dirp, count, dirent64)


@syscall("getdents")
def getdents(task: Task, fd: Fd, dirp: Ptr, count: UInt) -> int:
    """man 2 getdents: struct linux_dirent."""
    return read_directory(task, fd, dirp, count, dirent)


def dirent64(entry: Entry) -> bytes:
    name = entry.name
    size = len(name) + 27 & ~7  # 19 bytes before the name, a NUL behind it
    return (DIRENT.pack(entry.ino, entry.offset, size) + bytes((entry.kind,)) + name).ljust(size, b"\0")


def dirent(entry: Entry) -> bytes:
    """The type is in the last byte."""
    name = entry.name
    size = len(name) + 27 & ~7  # 18 bytes before the name, a NUL and the type behind it
    return (DIRENT.pack(entry.ino, entry.offset, size) + name).ljust(size - 1, b"\0") + bytes((entry.kind,))


def read_directory(task: Task, fd: int, address: int, count: int, pack: Callable[[Entry], bytes]) -> int:
    """iterate_dir(): as many entries as fit into `count` bytes; EINVAL if that is not even one."""
    file = task.files.opened(fd)
    position = file.position
    parts: list[bytes] = []
    size = 0
    for entry in file.getdents(task):
        record = pack(entry)
        if size + len(record) > count:
            if not parts:
                raise SysError(errno.EINVAL, "the buffer is too small")
            break
        parts.append(record)
        size += len(record)
        position = entry.offset
    if parts:
        task.memory.write(address, b"".join(parts))
    file.position = position
    if file.path is not None:
        if not file.flags & abi.O_NOATIME:
            file.path.mount.touch(task, file.path.dentry)
        notify_file(task, IN_ACCESS, file)
    return size
