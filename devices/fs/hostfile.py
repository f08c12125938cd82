"""A host file that the guest may read: the image that was booted. Nothing in the guest can change it or leave it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from devices.errors import SysError, host_errno
from devices.memory.pagecache import PageCache
from devices.vfs.abi import O_ACCMODE, O_RDONLY, SEEK_CUR, SEEK_END, SEEK_SET
from devices.vfs.files import OpenFile
from devices.vfs.transfer import transfer

if TYPE_CHECKING:
    from devices.memory.machine import MachineMemory
    from devices.task.task import Task
    from devices.vfs.files import Segments


class HostFileBacking:
    """What mappings of a host file read their pages from; they share frames through `shared()`."""

    def __init__(self, fd: int, path: bytes) -> None:
        self.fd = fd
        self.path = path
        self._cache: PageCache | None = None

    def shared(self, machine: MachineMemory) -> PageCache:
        """The file's page cache, which is what a mapping shows."""
        if self._cache is None:
            self._cache = PageCache(machine, self)
        return self._cache

    @property
    def size(self) -> int:
        """Length of the file in bytes; pages beyond it are SIGBUS."""
        return os.fstat(self.fd).st_size

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset` in bytes; the bytes read (short at the end of the file)."""
        done = 0
        while done < len(view):
            count = os.preadv(self.fd, [view[done:]], offset + done)
            if not count:
                break
            done += count
        return done

    def write_from(self, view: memoryview, offset: int) -> int:
        """No shared mapping of it can be written to."""
        raise OSError(errno.EBADF, "read-only")


class HostFile(OpenFile):
    """A read-only open file description over a host descriptor that the machine owns."""

    def __init__(self, backing: HostFileBacking, flags: int) -> None:
        if flags & O_ACCMODE != O_RDONLY:
            raise SysError(errno.EROFS, "the image is read-only")
        super().__init__(flags)
        self.backing = backing

    def read(self, task: Task, segments: Segments) -> int:
        count = self.pread(task, segments, self.position)
        self.position += count
        return count

    def pread(self, task: Task, segments: Segments, offset: int) -> int:
        def move(views: list[memoryview], done: int) -> int:
            with host_errno():
                return os.preadv(self.backing.fd, views, offset + done)

        return transfer(task, segments, True, move)

    def lseek(self, offset: int, whence: int) -> int:
        base = {SEEK_SET: 0, SEEK_CUR: self.position, SEEK_END: self.backing.size}.get(whence)
        if base is None or base + offset < 0:
            raise SysError(errno.EINVAL, "whence or a negative position")
        self.position = base + offset
        return self.position

    def stat(self) -> os.stat_result:
        return os.fstat(self.backing.fd)

    def mmap_backing(self, task: Task, prot: int, flags: int, offset: int, length: int) -> PageCache:
        return self.backing.shared(task.kernel.memory)
