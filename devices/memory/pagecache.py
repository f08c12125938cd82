"""The page cache of host files: pages that mappings show, kept in guest RAM, coherent with read and write.

What a file system over host files does with it (`file` is anything with the four things of `CachedFile`):

    cache = PageCache(machine, file)         # one for each file, shared by all that have it open or mapped
    cache.read(memory, segments, offset)     # read(2): from cached pages where there are some, else from the host
    cache.write(memory, segments, offset)    # write(2): to the host, which then has the bytes, and to pages
    cache.resized(size)                      # right after the host's file has got another size
    cache.punched(offset, n)                 # right after a hole was punched into it, or a range made zeros
    cache.sync() or cache.sync(offset, n)    # fsync(2), msync(2), before the host's own: what mappings have written
    cache.forget()                           # the host's file was changed by somebody else
    cache.close()                            # the inode goes: writes back, gives the frames up

mmap(2) gets the cache itself as the backing (`mmap_backing`). Pages come in by faults only: a file that was never
mapped has no frame, and reading and writing it costs the host's call and no more. Shared mappings are mapped read-only
until the first write, which marks pages dirty; `sync` write-protects them again before it writes them back, so that
nothing written meanwhile is lost. Dirty pages are written back by sync, by the last munmap or exit, and by
`MachineMemory.write_back()`, to be called some seconds after the first of them (see `on_dirty`) and at the machine's
end.

Frames of clean pages are taken back when memory is short: unmapped ones wherever a frame is wanted, mapped ones at a
program's own page fault (MachineMemory.make_room()).

Everything needs the kernel lock held. Calls of the host are made with it: they go to the host's own page cache.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

from devices.errors import SysError, host_errno
from devices.memory.filepages import CHUNK, FilePages, copy_segments, copy_views
from vmm.layout import PAGE_SHIFT, PAGE_SIZE
from vmm.memory.frames import OutOfFrames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from devices.memory.machine import MachineMemory
    from devices.memory.space import AddressSpace
    from vmm.memory.frames import Run

LAST_PAGE = 1 << 52
"""Behind every page that a file may have."""
MAX_RW_COUNT = 0x7FFF_F000


class CachedFile(Protocol):
    """A host's file. Its methods raise OSError."""

    @property
    def path(self) -> bytes:
        """As /proc/[pid]/maps shows it."""

    @property
    def size(self) -> int:
        """Bytes in the file, now."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill memory from `offset` on; the bytes read, fewer than asked for only at the end."""

    def write_from(self, view: memoryview, offset: int) -> int:
        """Write memory at `offset`; the bytes written, fewer only if an error keeps it from more."""


class PageCache(FilePages):
    """Pages of a host's file. See the text above."""

    tracks_writes = True
    copies_private = True

    def __init__(self, machine: MachineMemory, file: CachedFile) -> None:
        super().__init__(machine)
        self.file = file
        self._dirty: set[int] = set()
        """Pages that a mapping may have written to since they were last written back."""
        self._end = 0
        """Size of the file when it was looked at last: what the last page holds behind it is no content."""
        self._busy = 0
        """The monitor is filling frames: none is to be taken back."""
        self.error = 0
        """errno of a write-back that failed, for the next sync."""

    @property
    def path(self) -> bytes:  # type: ignore[override]  # each file's own
        return self.file.path

    @property
    def size(self) -> int:
        return self.file.size

    # Pages for mappings

    def frames_at(self, index: int, count: int) -> list[Run]:
        """Raises OutOfFrames, and OSError where the host could not read the first page."""
        size = self._look()
        last = min(index + count, _pages(size))
        if index >= last:
            return []
        self._busy += 1
        try:
            self._read_in(index, index + 1, size)
            try:
                self._read_in(index + 1, last, size)
            except (OSError, OutOfFrames):
                last = index + 1
        finally:
            self._busy -= 1
        self._used()
        return self.runs(index, last)

    def _read_in(self, first: int, last: int, size: int) -> None:
        """Have the pages [first, last), which lie in the file: one call of the host for each gap."""
        while (first := self.next_hole(first, last)) < last:
            stop = self.next_data(first, last)
            stop = last if stop < 0 else stop
            self.ensure(first, stop)
            start = first << PAGE_SHIFT
            try:
                self._host_read(self.views(start, min(stop << PAGE_SHIFT, size) - start), start)
            except BaseException:
                self.take_out(first, stop)
                raise
            first = stop

    def _used(self) -> None:
        """It holds frames, and was used just now."""
        caches = self._machine.caches
        caches.pop(self, None)
        if self.present:
            caches[self] = None

    def _look(self) -> int:
        """The size of the file. If it has grown, what stands behind its old end becomes zeros, as on Linux."""
        size = self.size
        if size > self._end and self._end % PAGE_SIZE and self.present:
            self.zero(self._end, min(size, (self._end | (PAGE_SIZE - 1)) + 1))
        self._end = size
        return size

    # Bytes, from the host and from the pages

    def _host_read(self, views: Iterable[memoryview], offset: int) -> int:
        return _each(self.file.read_into, views, offset)

    def _host_write(self, views: Iterable[memoryview], offset: int) -> int:
        return _each(self.file.write_from, views, offset)

    def read_into(self, view: memoryview, offset: int) -> int:
        return self._read([view], offset)

    def read(self, memory: AddressSpace, segments: Iterable[tuple[int, int]], offset: int) -> int:
        """Read into a program's buffers from `offset` on; the bytes read. SysError."""
        self._machine.make_room()
        limit = MAX_RW_COUNT if not self.present else self._look() - offset

        def move(views: list[memoryview], done: int) -> int:
            with host_errno():
                return self._read(views, offset + done)

        return copy_segments(memory, segments, limit, True, move)

    def _read(self, views: list[memoryview], offset: int) -> int:
        """Fill memory, from pages where there are some; the bytes read, fewer only at the end. OSError."""
        if not self.present:
            return self._host_read(views, offset)
        done = 0
        length = min(sum(map(len, views)), self._look() - offset)
        if length <= 0:
            return 0
        ram = self._machine.ram.view
        for pa, size in self.extents(offset, length):
            part, views = split_views(views, size)
            got = copy_views(part, (ram[pa : pa + size],)) if pa >= 0 else self._host_read(part, offset + done)
            done += got
            if got < size:
                break
        return done

    def write(self, memory: AddressSpace, segments: Iterable[tuple[int, int]], offset: int) -> int:
        """Write out of a program's buffers at `offset`, to the host and to the pages; the bytes written. SysError."""
        self._machine.make_room()

        def move(views: list[memoryview], done: int) -> int:
            with host_errno():
                written = self._host_write(views, offset + done)
            if self.present:
                self._look()
                self.store(views, offset + done, written)
            return written

        return copy_segments(memory, segments, MAX_RW_COUNT, False, move)

    # Changes of the file

    def resized(self, size: int) -> None:
        """The host's file has been given this size. Raises OutOfFrames."""
        if not self.present:
            return
        first = _pages(size)
        self._dirty = {index for index in self._dirty if index < first}
        self._clean_if_done()
        self.remove(first, LAST_PAGE, True)
        if size < self._end and size % PAGE_SIZE:
            self.zero(size, (size | (PAGE_SIZE - 1)) + 1)
            self._end = size
        self._look()

    def punched(self, offset: int, length: int) -> None:
        """A hole has been punched into the host's file, or a range made zeros. Raises OutOfFrames."""
        if self.present:
            first, last = (offset + PAGE_SIZE - 1) >> PAGE_SHIFT, (offset + length) >> PAGE_SHIFT
            self._dirty = {index for index in self._dirty if not first <= index < last}
            self._clean_if_done()
            self.clear(offset, length)

    def forget(self, offset: int = 0, length: int = LAST_PAGE << PAGE_SHIFT) -> None:
        """The host's file was changed by somebody else: read it again. What the guest has written to mappings and the
        host does not have yet stays. Raises OutOfFrames."""
        first, last = offset >> PAGE_SHIFT, _pages(offset + length)
        for start, stop in self._clean_runs(first, last):
            self.remove(start, stop, False)

    # What mappings have written

    def written(self, first: int, last: int) -> None:
        self._dirty.update(index for index in range(first, last) if self.frame(index))
        dirty = self._machine.dirty
        if not dirty:
            self._machine.on_dirty()
        dirty[self] = None

    def write_back(self, first: int = 0, last: int = LAST_PAGE) -> None:
        """Give the host what mappings have written to the pages [first, last); an error is kept for sync()."""
        size = self._look() if self._dirty else 0
        for start, stop in runs_of(sorted(index for index in self._dirty if first <= index < last)):
            for space in list(self.spaces):
                space.write_protect(self, start, stop)
            self._dirty.difference_update(
                index for index in range(start, stop) if not self._machine.is_pinned(self.frame(index))
            )
            at = start << PAGE_SHIFT
            length = min(stop << PAGE_SHIFT, size) - at
            try:
                if length > 0:
                    self._host_write(self.views(at, length), at)
            except OSError as error:
                self.error = error.errno or errno.EIO
        self._clean_if_done()

    def _clean_if_done(self) -> None:
        if not self._dirty:
            self._machine.dirty.pop(self, None)

    def sync(self, offset: int = 0, length: int = LAST_PAGE << PAGE_SHIFT) -> None:
        """write_back() for a range of bytes; SysError with what went wrong, now or before."""
        self.write_back(offset >> PAGE_SHIFT, _pages(offset + length))
        error, self.error = self.error, 0
        if error:
            raise SysError(error, "written by a mapping")

    def unmapped(self) -> None:
        self.write_back()

    # Giving frames back

    def _clean_runs(self, first: int, last: int) -> list[tuple[int, int]]:
        """Pages of [first, last) that have a frame which may go, as runs [start, stop)."""
        machine = self._machine
        clean: list[int] = []
        for key, start, stop in self._used_pieces(first, last):
            entries = self._chunks[key]
            clean += [key * CHUNK + i for i in range(start, stop) if entries[i] and key * CHUNK + i not in self._dirty]
        if machine.pins:
            clean = [index for index in clean if not machine.is_pinned(self.frame(index))]
        return runs_of(clean)

    def shrink(self, wanted: int, mapped: bool) -> int:
        """Free up to `wanted` frames or a little more, of clean pages that are mapped nowhere or (`mapped`) wherever
        they are; how many it were."""
        freed = 0
        if self._busy:
            return 0
        counts = self._machine.frames.counts
        for key in sorted(self._chunks):
            for start, stop in self._clean_runs(key * CHUNK, (key + 1) * CHUNK):
                if mapped:
                    freed += self.remove(start, stop, False)
                    continue
                loose = [i for i in range(start, stop) if counts[self.frame(i) >> PAGE_SHIFT] == 1]
                freed += sum(self.take_out(a, b) for a, b in runs_of(loose))
            if freed >= wanted:
                break
        if not self.present:
            self._machine.caches.pop(self, None)
        return freed

    def close(self) -> None:
        """The file goes, nothing maps it any more: write back, and give the frames up. May be called again."""
        self.write_back()
        self._dirty.clear()
        self._clean_if_done()
        self.take_out(0, LAST_PAGE)
        self._machine.caches.pop(self, None)


def _pages(size: int) -> int:
    """Pages that `size` bytes take."""
    return (size + PAGE_SIZE - 1) >> PAGE_SHIFT


def _each(move: Callable[[memoryview, int], int], views: Iterable[memoryview], offset: int) -> int:
    """Move each piece of memory until one falls short; the bytes moved."""
    done = 0
    for view in views:
        moved = move(view, offset + done)
        done += moved
        if moved < len(view):
            break
    return done


def runs_of(indices: Iterable[int]) -> list[tuple[int, int]]:
    """Ascending numbers as runs [start, stop)."""
    runs: list[tuple[int, int]] = []
    for index in indices:
        if runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        else:
            runs.append((index, index + 1))
    return runs


def split_views(views: list[memoryview], size: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first `size` bytes of a row of pieces of memory, and the rest."""
    first: list[memoryview] = []
    for i, view in enumerate(views):
        if len(view) > size:
            return [*first, view[:size]] if size else first, [view[size:], *views[i + 1 :]]
        first.append(view)
        size -= len(view)
    return first, []
