"""The page cache of host files: pages that mappings show, kept in guest RAM, coherent with read and write.

What a file system over host files does with it (`file` is anything with the four things of `CachedFile`):

    cache = PageCache(machine, file)         # one for each file, shared by all that have it open or mapped
    cache.read(memory, segments, offset)     # read(2): from cached pages where there are some, else straight from the host
    cache.write(memory, segments, offset)    # write(2): to the host (it has the bytes when this returns), and to cached pages
    cache.resized(size)                      # right after the host's file has got another size
    cache.sync() or cache.sync(offset, n)    # fsync(2), msync(2), before the host's own fsync: what mappings have written
    cache.forget(offset, n)                  # the host's file has changed behind the guest's back, or a hole was punched
    cache.close()                            # the file goes: writes back, gives the frames up

mmap(2) gets the cache itself as the backing. Pages come in by faults only: a file that nobody maps costs no frame, and
reading and writing it costs the host's call and no more. Shared mappings are mapped read-only until the first write, which
marks pages dirty; `sync` write-protects them again before it writes them back, so that nothing written meanwhile is
lost. Dirty pages are written back by sync, by the last munmap or exit, and by `MachineMemory.write_back()`, which is called
some seconds after the first of them (see `on_dirty`) and at the machine's end.

Frames of clean pages are taken back when memory is short: unmapped ones wherever a frame is wanted, mapped ones at a
program's own page fault (MachineMemory.make_room()).

Everything needs the kernel lock held. Calls of the host are made with it: they go to the host's own page cache.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from devices.errors import SysError
from devices.memory.filepages import FilePages, copy_segments
from vmm.layout import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from devices.memory.machine import MachineMemory
    from devices.memory.space import AddressSpace

HOST_IOV_MAX = 1024
LARGEST_INDEX = 1 << 52


class CachedFile(Protocol):
    """A host's file. Its methods raise OSError."""

    @property
    def path(self) -> bytes:
        """As /proc/[pid]/maps shows it."""

    @property
    def size(self) -> int:
        """Bytes in the file, now."""

    def readv(self, views: Sequence[memoryview], offset: int) -> int:
        """Fill memory (at most 1024 pieces) from `offset` on; the bytes read, fewer than asked for only at the end."""

    def writev(self, views: Sequence[memoryview], offset: int) -> int:
        """Write memory (at most 1024 pieces) at `offset`; the bytes written, fewer only where an error follows."""


class PageCache(FilePages):
    """Pages of a host's file. See the text above."""

    tracks_writes = True
    copies_private = True

    def __init__(self, machine: MachineMemory, file: CachedFile) -> None:
        super().__init__(machine)
        self.file = file
        self._dirty: set[int] = set()
        """Pages that a mapping may have written to since they were last written back."""
        self._busy = 0
        """Frames of it are in use by the monitor: they are not to be taken back."""
        self.error = 0
        """errno of a write-back that failed, for the next fsync."""

    @property
    def path(self) -> bytes:  # type: ignore[override]  # a value of its own for each file
        return self.file.path

    @property
    def size(self) -> int:
        return self.file.size

    # Pages

    def frames_at(self, index: int, count: int) -> list[tuple[int, int]]:
        """Raises OutOfFrames, and OSError where the host could not read."""
        size = self.size
        last = min(index + count, (size + PAGE_SIZE - 1) >> PAGE_SHIFT)
        if index >= last:
            return []
        self._busy += 1
        try:
            while index < last and self.missing(index, last):
                try:
                    self._read_in(index, last, size)
                except OSError:
                    last = index + 1  # the page that is wanted decides whether there is an error
                    if self.missing(index, last):
                        self._read_in(index, last, size)
        finally:
            self._busy -= 1
        self._used()
        return self.runs(index, last)

    def _read_in(self, first: int, last: int, size: int) -> None:
        """Have the pages [first, last), which the host's file has: one call of the host for each gap."""
        while (first := self.next_hole(first, last)) < last:
            stop = self.next_data(first, last)
            stop = last if stop < 0 else stop
            self.ensure(first, stop)
            try:
                length = min(stop << PAGE_SHIFT, size) - (first << PAGE_SHIFT)
                self._host_read(self.views(first << PAGE_SHIFT, length), first << PAGE_SHIFT)
            except BaseException:
                self.take_out(first, stop)
                raise
            first = stop

    def _host_read(self, views: list[memoryview], offset: int) -> int:
        """Read from the host until the views are full or the file ends; the bytes read."""
        return self._in_parts(self.file.readv, views, offset)

    def _host_write(self, views: list[memoryview], offset: int) -> int:
        return self._in_parts(self.file.writev, views, offset)

    @staticmethod
    def _in_parts(call, views: list[memoryview], offset: int) -> int:  # type: ignore[no-untyped-def]
        done = 0
        for at in range(0, len(views), HOST_IOV_MAX):
            part = views[at : at + HOST_IOV_MAX]
            moved = call(part, offset + done)
            done += moved
            if moved < sum(map(len, part)):
                break
        return done

    def _used(self) -> None:
        """It holds frames, and was used just now."""
        caches = self._machine.caches
        caches.pop(self, None)
        if self.present:
            caches[self] = None

    def read_into(self, view: memoryview, offset: int) -> int:
        return self._read([view], offset)

    # read and write

    def read(self, memory: AddressSpace, segments: Iterable[tuple[int, int]], offset: int) -> int:
        """Read into a program's buffers from `offset` on; the bytes read. SysError."""
        self._machine_room()
        limit = self.size - offset
        if limit <= 0:
            return 0
        return copy_segments(memory, segments, limit, True, lambda views, done: self._read(views, offset + done))

    def _read(self, views: list[memoryview], offset: int) -> int:
        raise NotImplementedError
