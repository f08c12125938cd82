"""Open file descriptions (struct file) and descriptor tables (struct files_struct)."""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.poll.abi import POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM
from devices.vfs.abi import (
    F_OWNER_PID,
    MAX_FILE_SIZE,
    O_ACCMODE,
    O_APPEND,
    O_PATH,
    O_RDWR,
    O_WRONLY,
    SEEK_CUR,
    SEEK_DATA,
    SEEK_END,
    SEEK_HOLE,
    SEEK_SET,
)
from devices.vfs.events import notify_close

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from typing import Any

    from devices.poll.epoll import EpollItem
    from devices.task.process import Credentials
    from devices.task.task import Task
    from devices.vfs.inode import Entry, Inode
    from devices.vfs.path import Path
    from devices.wait import PollQueue

    Segments = list[tuple[int, int]]
    """Guest buffers: (address, length in bytes), as an iovec has them."""


class OpenFile:
    """An open file description, shared by every descriptor that was duplicated from the first.

    A subclass overrides what its kind of file can do; what is here is what Linux answers for a file that cannot.
    """

    def __init__(self, flags: int) -> None:
        self.flags = flags
        """O_* as fcntl(F_GETFL) shows them."""
        self.position = 0
        self.references = 0
        """Descriptors of it, and calls that are using it."""
        self.listeners: list[EpollItem] = []
        """Items of epoll instances that it is in; they go with it."""

    path: Path | None = None
    """How it was opened; None for a file that is in no file system (see attach())."""
    inode: Inode | None = None
    locks: object = None
    """Locks on a file that has no inode (devices/vfs/locks.py)."""
    owner = (F_OWNER_PID, 0)
    """fcntl(F_SETOWN_EX): whom SIGIO goes to, by F_OWNER_* and its number."""
    signal = 0
    """fcntl(F_SETSIG): which signal that is, 0 for SIGIO."""
    credentials: Credentials | None = None
    """Of who opened it by a path."""
    created = False
    """open(O_CREAT) has made the file."""
    write_hint = 0
    """fcntl(F_SET_RW_HINT): RWH_*."""
    supports_direct = True
    """Is O_DIRECT taken?"""
    supports_nowait = False
    """Does RWF_NOWAIT mean something to it? It is then made non-blocking for the call."""

    # Readiness (poll, select, epoll: devices/poll)

    pollers: PollQueue | None = None
    """Whom to tell when the file becomes ready; None for a file that is always ready or lives in the host."""
    host_poll_fd = -1
    """The host descriptor whose readiness is the file's, for a file that lives in the host; else -1."""

    def poll(self) -> int:
        """The POLL* bits that the file is ready for now. A file without a notion of readiness is always ready."""
        return POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM

    def check_readable(self) -> None:
        if self.flags & (O_PATH | O_WRONLY):  # O_ACCMODE is 0 or 2
            raise SysError(errno.EBADF, "not open for reading")

    def check_writable(self) -> None:
        if self.flags & O_PATH or self.flags & O_ACCMODE not in (O_WRONLY, O_RDWR):
            raise SysError(errno.EBADF, "not open for writing")

    def read(self, task: Task, segments: Segments) -> int:
        """Read at the file's position into guest memory, advancing it; bytes read, 0 at the end."""
        raise SysError(errno.EINVAL, "cannot be read")

    def write(self, task: Task, segments: Segments) -> int:
        """Write from guest memory at the file's position, advancing it; bytes written."""
        raise SysError(errno.EINVAL, "cannot be written")

    def pread(self, task: Task, segments: Segments, offset: int) -> int:
        """Read at `offset` (bytes); the position stays."""
        raise SysError(errno.ESPIPE, "has no offsets")

    def pwrite(self, task: Task, segments: Segments, offset: int) -> int:
        raise SysError(errno.ESPIPE, "has no offsets")

    def lseek(self, offset: int, whence: int) -> int:
        raise SysError(errno.ESPIPE, "has no offsets")

    def ioctl(self, task: Task, request: int, argument: int) -> int:
        raise SysError(errno.ENOTTY, "no such ioctl")

    def stat(self) -> os.stat_result:
        raise SysError(errno.EBADF)

    def mmap_backing(self, task: Task, prot: int, flags: int, offset: int, length: int) -> Any:
        """What a mapping of the file reads its pages from (devices/memory)."""
        raise SysError(errno.ENODEV, "cannot be mapped")

    # What only some kinds of files can do; the answers here are Linux's for the others

    def getdents(self, task: Task) -> Iterator[Entry]:
        """Entries of a directory from `position` on; whoever takes one sets the position to its offset."""
        raise SysError(errno.ENOTDIR)

    def fsync(self, task: Task, datasync: bool) -> None:
        """Have what was written reach where it is kept."""
        raise SysError(errno.EINVAL, "cannot be synchronized")

    def fallocate(self, task: Task, mode: int, offset: int, length: int) -> None:
        """man 2 fallocate; what is true of every file (negative ranges, flags that exclude each other) is checked."""
        raise SysError(errno.EOPNOTSUPP)

    def advise(self, task: Task, offset: int, length: int, advice: int) -> None:
        """posix_fadvise(2), readahead(2): POSIX_FADV_*; `length` 0 is to the end."""

    def truncate(self, task: Task, size: int) -> None:
        """ftruncate of a regular file that is open for writing."""
        if self.inode is None:
            raise SysError(errno.EINVAL, "no regular file")
        self.inode.setattr(size=size)

    def capacity(self) -> int:
        """fcntl(F_GETPIPE_SZ) in bytes."""
        raise SysError(errno.EBADF, "no pipe")

    def set_capacity(self, task: Task, size: int) -> int:
        """fcntl(F_SETPIPE_SZ): the new capacity in bytes."""
        raise SysError(errno.EBADF, "no pipe")

    def seals(self) -> int:
        """fcntl(F_GET_SEALS): F_SEAL_*."""
        raise SysError(errno.EINVAL, "cannot be sealed")

    def add_seals(self, task: Task, seals: int) -> None:
        """fcntl(F_ADD_SEALS)."""
        raise SysError(errno.EINVAL, "cannot be sealed")

    def flush_locked(self, task: Task | None) -> None:
        """A descriptor of it is being closed; an error is what close(2) returns."""

    # Where it was opened

    def attach(self, path: Path) -> None:
        """It is open on `path`, which stays in use until it is closed."""
        hold(path)
        self.path = path
        self.inode = path.dentry.inode
        if self.may_write:
            self.inode.writers += 1
            path.mount.writers += 1

    @property
    def may_write(self) -> bool:
        return not self.flags & O_PATH and self.flags & O_ACCMODE in (O_WRONLY, O_RDWR)

    def _detach_locked(self, path: Path) -> None:
        inode = path.dentry.inode
        if not self.flags & O_PATH:
            notify_close(self, path)
        if self.may_write:
            inode.writers -= 1
            path.mount.writers -= 1
        self.path = None
        drop_locked(path)

    @property
    def pollable(self) -> bool:
        """May it be put into an epoll instance (file_can_poll())?"""
        return self.pollers is not None or self.host_poll_fd >= 0

    def hold(self) -> OpenFile:
        """A call begins to use the file: it stays open until the call has put() it back."""
        self.references += 1
        return self

    def put_locked(self) -> None:
        """A descriptor or a call is done with the file; the last one closes it."""
        self.references -= 1
        if not self.references:
            for item in list(self.listeners):
                item.file_closed_locked()
            path = self.path
            self.release_locked()
            locks = (self.inode or self).locks
            if locks is not None:
                from devices.vfs.locks import file_closed_locked

                file_closed_locked(self, locks)
            if path is not None:
                self._detach_locked(path)

    def release_locked(self) -> None:
        """The last descriptor is gone."""


class SeekableFile(OpenFile):
    """A file with offsets: a subclass has pread(), pwrite() and `inode`."""

    def read(self, task: Task, segments: Segments) -> int:
        count = self.pread(task, segments, self.position)
        self.position += count
        return count

    def write(self, task: Task, segments: Segments) -> int:
        if self.flags & O_APPEND:
            self.position = self.size()
        count = self.pwrite(task, segments, self.position)
        self.position += count
        return count

    def size(self) -> int:
        """Bytes in the file now."""
        assert self.inode is not None
        self.inode.refresh()
        return self.inode.size

    def lseek(self, offset: int, whence: int) -> int:
        """generic_file_llseek(). SysError(EINVAL, EOVERFLOW, ENXIO)."""
        if whence == SEEK_SET:
            position = offset
        elif whence == SEEK_CUR:
            position = self.position + offset
        elif whence == SEEK_END:
            position = self.size() + offset
        elif whence in (SEEK_DATA, SEEK_HOLE):
            position = self.seek_hole(offset, whence == SEEK_HOLE)
        else:
            raise SysError(errno.EINVAL, "whence")
        if not 0 <= position <= MAX_FILE_SIZE:
            raise SysError(errno.EINVAL, "position")
        self.position = position
        return position

    def seek_hole(self, offset: int, hole: bool) -> int:
        """Where the next hole, or the next data, begins at or behind `offset`. A file without holes is one datum with a
        hole at its end. SysError(ENXIO) behind the end."""
        size = self.size()
        if not 0 <= offset < size:
            raise SysError(errno.ENXIO)
        return size if hole else offset


class PathFile(OpenFile):
    """What open(O_PATH) gives: a place, not a file that could be read or written."""


def hold(path: Path) -> None:
    """`path` is in use: its mount is not unmounted by umount2(2) without MNT_DETACH, its file's contents stay."""
    path.mount.hold()
    path.dentry.inode.users += 1


def drop_locked(path: Path) -> None:
    """A use of `path` (see hold()) has ended."""
    inode = path.dentry.inode
    inode.users -= 1
    release_if_unused(inode)
    path.mount.drop_locked()


def release_if_unused(inode: Inode) -> None:
    """iput(): a file without a name and without a user goes."""
    if not inode.users and not inode.nlink:
        inode.released()


class FileTable:
    """Descriptors of a process: lowest free number first, a close-on-exec flag each."""

    def __init__(self) -> None:
        self.users = 1
        """Processes, and tasks with a table of their own, that have it."""
        self._files: dict[int, OpenFile] = {}
        self._cloexec: set[int] = set()
        self._free = 0  # no descriptor below it is free

    def get(self, fd: int) -> OpenFile:
        """EBADF for a number that is not open."""
        file = self._files.get(fd)
        if file is None:
            raise SysError(errno.EBADF, f"{fd} is not open")
        return file

    def opened(self, fd: int) -> OpenFile:
        """The same for calls that need a file which was really opened: EBADF for one of O_PATH."""
        file = self.get(fd)
        if file.flags & O_PATH:
            raise SysError(errno.EBADF, "opened with O_PATH")
        return file

    def find(self, fd: int) -> OpenFile | None:
        return self._files.get(fd)

    def capacity(self) -> int:
        """How many descriptors Linux's table has room for now (max_fds of fs/file.c): select looks at these."""
        highest = max(self._files, default=-1)
        return 64 if highest < 64 else 128 << (highest // 128).bit_length()

    def numbers(self) -> list[int]:
        return sorted(self._files)

    def has_room(self, limit: int) -> bool:
        """Is a number below `limit` (RLIMIT_NOFILE) free?"""
        return self._free < limit and (self._free not in self._files or len(self._files) < limit)

    def install(self, file: OpenFile, limit: int, *, lowest: int = 0, cloexec: bool = False) -> int:
        """Give `file` the lowest free number >= `lowest`; EMFILE when that is not below `limit` (RLIMIT_NOFILE)."""
        fd = max(lowest, self._free)
        while fd in self._files:
            fd += 1
        if fd >= limit:
            raise SysError(errno.EMFILE, "RLIMIT_NOFILE")
        if lowest <= self._free:
            self._free = fd + 1
        self._put(fd, file, cloexec)
        return fd

    def replace_locked(self, fd: int, file: OpenFile, cloexec: bool = False) -> None:
        """Let `fd` be `file`; what it was is closed (dup2)."""
        file.hold()
        if fd in self._files:
            self.close_locked(fd)
        self._put(fd, file, cloexec)
        file.put_locked()

    def _put(self, fd: int, file: OpenFile, cloexec: bool) -> None:
        self._files[fd] = file.hold()
        self.set_cloexec(fd, cloexec)

    def close_locked(self, fd: int, task: Task | None = None) -> None:
        file = self.get(fd)
        del self._files[fd]
        self._cloexec.discard(fd)
        self._free = min(self._free, fd)
        locks = (file.inode or file).locks
        if locks is not None and not file.flags & O_PATH:
            from devices.vfs.locks import descriptor_closed_locked

            descriptor_closed_locked(self, locks)
        try:
            file.flush_locked(task)
        finally:
            file.put_locked()

    def copy(self) -> FileTable:
        """dup_fd(): a table of its own with the same files."""
        other = FileTable()
        for fd, file in self._files.items():
            other._put(fd, file, fd in self._cloexec)
        other._free = self._free
        return other

    def release_locked(self) -> None:
        """A user of the table has ended; the last one closes its files."""
        self.users -= 1
        if not self.users:
            self.close_all_locked()

    def close_all_locked(self) -> None:
        for fd in self.numbers():
            with suppress(SysError):  # nobody is left to be told
                self.close_locked(fd)

    def close_on_exec_locked(self, task: Task) -> None:
        """do_close_on_exec()."""
        for fd in sorted(self._cloexec):
            with suppress(SysError):
                self.close_locked(fd, task)

    def cloexec(self, fd: int) -> bool:
        self.get(fd)
        return fd in self._cloexec

    def set_cloexec(self, fd: int, value: bool) -> None:
        self.get(fd)
        if value:
            self._cloexec.add(fd)
        else:
            self._cloexec.discard(fd)
