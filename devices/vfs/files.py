"""Open file descriptions (struct file) and descriptor tables (struct files_struct)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.vfs.abi import O_ACCMODE, O_PATH, O_RDONLY, O_WRONLY

if TYPE_CHECKING:
    import os
    from typing import Any

    from devices.task.task import Task

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

    def check_readable(self) -> None:
        if self.flags & O_PATH or self.flags & O_ACCMODE == O_WRONLY:
            raise SysError(errno.EBADF, "not open for reading")

    def check_writable(self) -> None:
        if self.flags & O_PATH or self.flags & O_ACCMODE == O_RDONLY:
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

    def release_locked(self) -> None:
        """The last descriptor is gone."""


class FileTable:
    """Descriptors of a process: lowest free number first, a close-on-exec flag each."""

    def __init__(self) -> None:
        self._files: dict[int, OpenFile] = {}
        self._cloexec: set[int] = set()
        self._free = 0  # no descriptor below it is free

    def get(self, fd: int) -> OpenFile:
        """EBADF for a number that is not open."""
        file = self._files.get(fd)
        if file is None:
            raise SysError(errno.EBADF, f"{fd} is not open")
        return file

    def numbers(self) -> list[int]:
        return sorted(self._files)

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
        file.references += 1
        if fd in self._files:
            self.close_locked(fd)
        file.references -= 1
        self._put(fd, file, cloexec)

    def _put(self, fd: int, file: OpenFile, cloexec: bool) -> None:
        file.references += 1
        self._files[fd] = file
        self.set_cloexec(fd, cloexec)

    def close_locked(self, fd: int) -> None:
        file = self.get(fd)
        del self._files[fd]
        self._cloexec.discard(fd)
        self._free = min(self._free, fd)
        file.references -= 1
        if not file.references:
            file.release_locked()

    def close_all_locked(self) -> None:
        for fd in self.numbers():
            self.close_locked(fd)

    def cloexec(self, fd: int) -> bool:
        self.get(fd)
        return fd in self._cloexec

    def set_cloexec(self, fd: int, value: bool) -> None:
        self.get(fd)
        if value:
            self._cloexec.add(fd)
        else:
            self._cloexec.discard(fd)
