"""Contents of a host's regular file: one set of host descriptors for all its opens and mappings in the guest."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from devices.errors import SysError, host_errno
from devices.vfs.abi import O_APPEND, SEEK_CUR, SEEK_DATA, SEEK_END, SEEK_HOLE, SEEK_SET
from devices.vfs.files import OpenFile
from devices.vfs.transfer import transfer

if TYPE_CHECKING:
    from typing import Any

    from devices.fs.hostfs.inode import HostInode
    from devices.task.task import Task
    from devices.vfs.files import Segments

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2


class HostContents:
    """The bytes of a file: host descriptors for reading and for writing, opened when they are first needed."""

    def __init__(self, inode: HostInode) -> None:
        self._inode = inode
        self._reader = -1
        self._writer = -1

    @property
    def path(self) -> bytes:
        return b""

    @property
    def size(self) -> int:
        """Length in bytes."""
        return os.fstat(self._inode.fd).st_size

    @property
    def reader(self) -> int:
        """A host descriptor that can be read."""
        if self._reader < 0:
            with host_errno():
                self._reader = os.open(self._inode.by_descriptor, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        return self._reader

    @property
    def writer(self) -> int:
        """A host descriptor that can be written (and read, where the host's user may)."""
        if self._writer < 0:
            with host_errno():
                self._writer = os.open(self._inode.by_descriptor, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
        return self._writer

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset` on; the bytes read, short at the end of the file."""
        done = 0
        while done < len(view):
            count = os.preadv(self.reader, [view[done:]], offset + done)
            if not count:
                break
            done += count
        return done

    def write_from(self, view: memoryview, offset: int) -> int:
        """Write `view` at `offset`; the bytes written."""
        done = 0
        while done < len(view):
            done += os.pwritev(self.writer, [view[done:]], offset + done)
        return done

    def truncate(self, size: int) -> None:
        os.ftruncate(self.writer, size)

    def write_back(self) -> None:
        """Everything that was written is with the host already."""

    def fsync(self, datasync: bool) -> None:
        if self._writer >= 0:
            with host_errno():
                (os.fdatasync if datasync else os.fsync)(self._writer)

    def close(self) -> None:
        for fd in (self._reader, self._writer):
            if fd >= 0:
                os.close(fd)
        self._reader = self._writer = -1


class HostRegular(OpenFile):
    """An open regular file of the host."""

    def __init__(self, inode: HostInode, flags: int) -> None:
        super().__init__(flags)
        self.file = inode
        self.contents = inode.shared_contents()
        if self.flags & 3 != os.O_WRONLY:
            _ = self.contents.reader  # what may not be opened is refused now
        if self.flags & 3 != os.O_RDONLY:
            _ = self.contents.writer

    def read(self, task: Task, segments: Segments) -> int:
        count = self.pread(task, segments, self.position)
        self.position += count
        return count

    def pread(self, task: Task, segments: Segments, offset: int) -> int:
        fd = self.contents.reader

        def move(views: list[memoryview], done: int) -> int:
            with host_errno():
                return os.preadv(fd, views, offset + done)

        return transfer(task, segments, True, move)

    def write(self, task: Task, segments: Segments) -> int:
        if self.flags & O_APPEND:
            self.position = self.contents.size
        count = self.pwrite(task, segments, self.position)
        self.position += count
        return count

    def pwrite(self, task: Task, segments: Segments, offset: int) -> int:
        fd = self.contents.writer
        if self.flags & O_APPEND:
            offset = self.contents.size

        def move(views: list[memoryview], done: int) -> int:
            with host_errno():
                return os.pwritev(fd, views, offset + done)

        return transfer(task, segments, False, move)

    def lseek(self, offset: int, whence: int) -> int:
        if whence in (SEEK_DATA, SEEK_HOLE):
            with host_errno():
                self.position = os.lseek(self.contents.reader, offset, whence)
            return self.position
        base = {SEEK_SET: 0, SEEK_CUR: self.position, SEEK_END: self.contents.size}.get(whence)
        if base is None or base + offset < 0:
            raise SysError(errno.EINVAL, "whence or a negative position")
        self.position = base + offset
        return self.position

    def stat(self) -> os.stat_result:
        return os.fstat(self.file.fd)

    def fsync(self, task: Task, datasync: bool) -> None:
        self.contents.write_back()
        self.contents.fsync(datasync)

    def fallocate(self, task: Task, mode: int, offset: int, length: int) -> None:
        if mode:
            raise SysError(errno.EOPNOTSUPP, "only plain allocation on the host")
        with host_errno():
            os.posix_fallocate(self.contents.writer, offset, length)

    def mmap_backing(self, task: Task, prot: int, flags: int, offset: int, length: int) -> Any:
        return self.contents
