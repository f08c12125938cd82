"""Contents of a host's regular file: one set of host descriptors for all its opens and mappings in the guest."""

from __future__ import annotations

import os

from devices.fs.hostfs.host import open_quietly, within

COMMON = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class HostContents:
    """The bytes of a file, as the page cache wants them (CachedFile of devices/memory/pagecache.py). Methods raise
    OSError. It holds no reference to its inode: both go when the inode does."""

    __slots__ = ("__weakref__", "_stamp", "reader", "writer")

    path = b""

    def __init__(self) -> None:
        self.reader = -1
        """A host descriptor that can be read, -1 before it was wanted."""
        self.writer = -1
        """One that can be written; may be the same."""
        self._stamp = (0, 0)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptors back."""
        reader, writer = self.reader, self.writer
        self.reader = self.writer = -1
        for fd in {reader, writer} - {-1}:
            os.close(fd)

    def adopt(self, fd: int) -> None:
        """A descriptor that can be read and written, of a file that was made just now."""
        self.reader = self.writer = fd

    def open(self, path: str, limit: int, *, read: bool, write: bool, quiet: bool) -> None:
        """Have the descriptors for what is wanted; `path` leads to the inode; `quiet`: leave times of access alone."""
        read = read and self.reader < 0
        if write and self.writer < 0:
            self.writer = within(os.open(path, (os.O_RDWR if read else os.O_WRONLY) | COMMON), limit)
            if read:
                self.reader = self.writer
        elif read:
            flags = os.O_RDONLY | COMMON
            self.reader = within(open_quietly(path, flags) if quiet else os.open(path, flags), limit)

    @property
    def descriptor(self) -> int:
        """Either of them."""
        return self.reader if self.reader >= 0 else self.writer

    @property
    def size(self) -> int:
        """Bytes in the file now."""
        return os.fstat(self.descriptor).st_size

    def changed_outside(self) -> bool:
        """Was the file changed by somebody else since this was asked, or the guest wrote, the last time?"""
        before, stamp = self._stamp, self._now()
        self._stamp = stamp
        return stamp != before

    def changed_here(self) -> None:
        self._stamp = self._now()

    def _now(self) -> tuple[int, int]:
        host = os.fstat(self.descriptor)
        return host.st_mtime_ns, host.st_size

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
        """Write `view` at `offset`; the bytes written, fewer only if an error keeps it from more."""
        done = 0
        try:
            while done < len(view):
                done += os.pwritev(self.writer, [view[done:]], offset + done)
        except OSError:
            if not done:
                raise
        self.changed_here()
        return done

    def truncate(self, size: int) -> None:
        os.ftruncate(self.writer, size)
        self.changed_here()
