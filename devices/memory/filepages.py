"""Frames by page of a file: contents that live in guest RAM, shown by mappings and moved by read and write alike.

`FilePages` is a sparse array of frames, for files in memory (tmpfs, memfd), the page cache of host files (pagecache.py)
and anonymous shared memory (`SharedMemory`). Mappings show the very frames that reads and writes copy from and to, so
that they are coherent with each other for nothing.
"""

from __future__ import annotations

import errno
from array import array
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.memory.backing import SharedBacking
from vmm.layout import LARGE_SIZE, PAGE_SHIFT, PAGE_SIZE
from vmm.memory.frames import BLOCK_FRAMES, OutOfFrames, add_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from devices.memory.machine import MachineMemory
    from devices.memory.space import AddressSpace
    from vmm.memory.frames import Run

    Move = Callable[[list[memoryview], int], int]

CHUNK = BLOCK_FRAMES
"""Pages a piece of the array."""
UNWRITTEN = 1
"""In an entry: the frame was only reserved (fallocate), and still counts as a hole for whoever looks for data."""
_EMPTY = bytes(8 * CHUNK)
_ZEROS = memoryview(bytes(1 << 16))
_MASK = ~(PAGE_SIZE - 1)

COPIED_AT_ONCE = 1 << 20
"""Bytes of a program's buffer that are made present at once."""

Extent = tuple[int, int]
"""Guest-physical address (-1 for a hole), bytes."""


class FilePages(SharedBacking):
    """The pages of a file of `size` bytes; missing ones are holes. Raises OutOfFrames where it makes some."""

    def __init__(self, machine: MachineMemory, size: int = 0) -> None:
        super().__init__()
        self._machine = machine
        self._size = size
        self._chunks: dict[int, array[int]] = {}
        """Frames' addresses, 0 for a hole."""
        self.present = 0
        """Pages that have a frame."""
        self._reserved = False
        """There may be UNWRITTEN ones among them."""

    @property
    def size(self) -> int:
        """Bytes in the file; pages wholly behind it are SIGBUS."""
        return self._size

    # Frames

    def frame(self, index: int) -> int:
        chunk = self._chunks.get(index // CHUNK)
        return chunk[index % CHUNK] & _MASK if chunk is not None else 0

    def _pieces(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Pages [first, last) as (number of a chunk, first page in it, page behind the last)."""
        while first < last:
            start = first % CHUNK
            stop = min(CHUNK, start + last - first)
            yield first // CHUNK, start, stop
            first += stop - start

    def _used_pieces(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """The same for the chunks that are there, in order, however far the range goes."""
        if last - first <= CHUNK:
            for key, start, stop in self._pieces(first, last):
                if key in self._chunks:
                    yield key, start, stop
            return
        for key in sorted(self._chunks):
            start, stop = max(first - key * CHUNK, 0), min(last - key * CHUNK, CHUNK)
            if start < stop:
                yield key, start, stop

    def missing(self, first: int, last: int) -> int:
        """How many of the pages [first, last) are holes."""
        there = 0
        for key, start, stop in self._used_pieces(first, last):
            there += stop - start - self._chunks[key][start:stop].count(0)
        return last - first - there

    def ensure(self, first: int, last: int, state: int = 0) -> None:
        """Give the holes among the pages [first, last) zeroed frames; `state`: 0, or UNWRITTEN for these. Raises
        OutOfFrames, and then none is made."""
        wanted = self.missing(first, last)
        if not wanted and not self._reserved:
            return
        self._reserved |= bool(state)
        fresh = self._allocate(wanted) if wanted else []
        addresses = (a for run, n in fresh for a in range(run, run + (n << PAGE_SHIFT), PAGE_SIZE))
        self.present += wanted
        for key, start, stop in self._pieces(first, last):
            chunk = self._chunks.get(key)
            if chunk is None:
                chunk = self._chunks[key] = array("Q", _EMPTY)
            if state:
                for i in range(start, stop):
                    if not chunk[i]:
                        chunk[i] = next(addresses) | state
            else:
                for i in range(start, stop):
                    entry = chunk[i]
                    if not entry:
                        chunk[i] = next(addresses)
                    elif entry & UNWRITTEN:
                        chunk[i] = entry & _MASK

    def _allocate(self, count: int) -> list[Run]:
        self.charge(count)
        try:
            return self._machine.frames.allocate_run(count)
        except OutOfFrames:
            self.uncharge(count)
            raise

    def charge(self, count: int) -> None:
        """`count` frames more are to come, where somebody counts. SysError."""

    def uncharge(self, count: int) -> None:
        """`count` frames have gone, or did not come."""

    def holds(self, index: int) -> bool:
        """Does page `index` hold data?"""
        chunk = self._chunks.get(index // CHUNK)
        entry = chunk[index % CHUNK] if chunk is not None else 0
        return bool(entry) and not entry & UNWRITTEN

    def runs(self, first: int, last: int) -> list[Run]:
        """The frames of the pages [first, last), up to the first hole."""
        runs: list[Run] = []
        for key, start, stop in self._pieces(first, last):
            chunk = self._chunks.get(key)
            if chunk is None:
                break
            for entry in chunk[start:stop]:
                if not entry:
                    return runs
                add_run(runs, entry & _MASK, 1)
        return runs

    def take_out(self, first: int, last: int) -> int:
        """Make holes of the pages [first, last), which are mapped nowhere any more; how many had a frame."""
        runs: list[Run] = []
        count = 0
        for key, start, stop in list(self._used_pieces(first, last)):
            chunk = self._chunks[key]
            for i in range(start, stop):
                entry = chunk[i]
                if entry:
                    add_run(runs, entry & _MASK, 1)
                    chunk[i] = 0
                    count += 1
            if stop - start == CHUNK or not any(chunk):
                del self._chunks[key]
        self.present -= count
        self.uncharge(count)
        self._machine.release(runs)
        return count

    def remove(self, first: int, last: int, private: bool) -> int:
        """take_out() for pages that may be mapped; `private` as for unmap_range(). Raises OutOfFrames before."""
        if self.spaces:
            self.unmap_range(first, last, private)
        return self.take_out(first, last)

    def zero(self, start: int, end: int) -> None:
        """Make the bytes [start, end) zeros, which lie in one page; a hole is that already."""
        frame = self.frame(start >> PAGE_SHIFT)
        if frame and start < end:
            pa = frame + start % PAGE_SIZE
            self._machine.ram.view[pa : pa + end - start] = bytes(end - start)
            self._machine.code_written(pa, end - start)

    def cut(self, size: int) -> int:
        """The file ends at `size` now: what is behind it goes, from mappings as well; how many frames went."""
        self._size = size
        gone = self.remove((size + PAGE_SIZE - 1) >> PAGE_SHIFT, 1 << 52, True)
        if size % PAGE_SIZE:
            self.zero(size, (size | (PAGE_SIZE - 1)) + 1)
        return gone

    def clear(self, offset: int, length: int) -> int:
        """A hole is punched: whole pages go, also from mappings, what lies in parts of pages becomes zeros; how many
        frames went."""
        end = offset + length
        first, last = (offset + PAGE_SIZE - 1) >> PAGE_SHIFT, end >> PAGE_SHIFT
        if first > last:
            self.zero(offset, end)
            return 0
        self.zero(offset, first << PAGE_SHIFT)
        self.zero(last << PAGE_SHIFT, end)
        return self.remove(first, last, False)

    def next_data(self, first: int, last: int) -> int:
        """The first page of [first, last) that holds data; -1 if none does."""
        for key, start, stop in self._used_pieces(first, last):
            for i, entry in enumerate(self._chunks[key][start:stop], start):
                if entry and not entry & UNWRITTEN:
                    return key * CHUNK + i
        return -1

    def next_hole(self, first: int, last: int) -> int:
        """The first page of [first, last) that holds no data; `last` if there is none."""
        for key, start, stop in self._pieces(first, last):
            chunk = self._chunks.get(key)
            if chunk is None:
                return key * CHUNK + start
            for i, entry in enumerate(chunk[start:stop], start):
                if not entry or entry & UNWRITTEN:
                    return key * CHUNK + i
        return last

    # For mappings

    def frames_at(self, index: int, count: int) -> list[Run]:
        last = min(index + count, (self.size + PAGE_SIZE - 1) >> PAGE_SHIFT)
        if index >= last:
            return []
        self.ensure(index, last)
        return self.runs(index, last)

    # Bytes

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Where the `length` bytes from `offset` on are in guest RAM, joined where that is contiguous; holes are -1."""
        found: list[Extent] = []
        end = offset + length
        for key, start, stop in self._pieces(offset >> PAGE_SHIFT, (end + PAGE_SIZE - 1) >> PAGE_SHIFT):
            chunk = self._chunks.get(key)
            if chunk is None:
                _join(found, -1, (stop - start) << PAGE_SHIFT)
                continue
            entries = chunk[start:stop]
            head = entries[0]
            if head and not head & UNWRITTEN and _contiguous(entries):
                _join(found, head, len(entries) << PAGE_SHIFT)
                continue
            for entry in entries:
                _join(found, -1 if not entry or entry & UNWRITTEN else entry, PAGE_SIZE)
        if found:
            skip, over = offset % PAGE_SIZE, -end % PAGE_SIZE
            pa, size = found[0]
            found[0] = (pa + skip if pa >= 0 else -1, size - skip)
            pa, size = found[-1]
            found[-1] = (pa, size - over)
        return found

    def views(self, offset: int, length: int) -> list[memoryview]:
        """The same to be read from, holes as zeros."""
        ram = self._machine.ram.view
        views: list[memoryview] = []
        for pa, size in self.extents(offset, length):
            if pa >= 0:
                views.append(ram[pa : pa + size])
            else:
                views += [_ZEROS[: min(len(_ZEROS), size - at)] for at in range(0, size, len(_ZEROS))]
        return views

    def read_into(self, view: memoryview, offset: int) -> int:
        length = max(0, min(len(view), self.size - offset))
        return copy_views([view[:length]], self.views(offset, length)) if length else 0

    def copy_out(self, memory: AddressSpace, segments: Sequence[tuple[int, int]], offset: int, limit: int) -> int:
        """Read at most `limit` bytes, which the file has from `offset` on, into a program's buffers; the bytes read.

        SysError(EFAULT) where that is none because of a buffer that the program may not write to."""
        if len(segments) == 1:
            address, size = segments[0]
            size = min(size, limit)
            pa = self._small(offset, size)
            if pa:
                try:
                    memory.write(address, self._machine.ram.view[pa : pa + size])
                    return size
                except SysError:
                    pass  # a part of it may be possible
        return copy_segments(memory, segments, limit, True, lambda views, done: self._out(views, offset + done))

    def _small(self, offset: int, size: int) -> int:
        """Where `size` bytes from `offset` on are in guest RAM, if they are in one page that holds data; else 0."""
        within = offset % PAGE_SIZE
        if not size or within + size > PAGE_SIZE:
            return 0
        chunk = self._chunks.get(offset // LARGE_SIZE)
        entry = chunk[offset // PAGE_SIZE % CHUNK] if chunk is not None else 0
        return entry + within if entry and not entry & UNWRITTEN else 0

    def _out(self, targets: list[memoryview], offset: int) -> int:
        return copy_views(targets, self.views(offset, sum(map(len, targets))))

    def copy_in(self, memory: AddressSpace, segments: Sequence[tuple[int, int]], offset: int, limit: int) -> int:
        """Write at most `limit` bytes out of a program's buffers at `offset`; the bytes written. SysError(EFAULT) as
        for copy_out(), and what make_room() raises."""
        if len(segments) == 1:
            address, size = segments[0]
            size = min(size, limit)
            pa = self._small(offset, size)
            if pa:
                try:
                    self._machine.ram.view[pa : pa + size] = memory.read(address, size)
                    self._machine.code_written(pa, size)
                    return size
                except SysError:
                    pass
        return copy_segments(memory, segments, limit, False, lambda views, done: self._in(views, offset + done))

    def _in(self, sources: list[memoryview], offset: int) -> int:
        length = self.make_room(offset, sum(map(len, sources)))
        return self.store(sources, offset, length)

    def make_room(self, offset: int, length: int) -> int:
        """Have frames for the bytes [offset, offset + length); how many of them can be written. OutOfFrames."""
        self.ensure(offset >> PAGE_SHIFT, (offset + length + PAGE_SIZE - 1) >> PAGE_SHIFT)
        return length

    def store(self, sources: Sequence[memoryview], offset: int, length: int) -> int:
        """Copy bytes to where frames are; what falls into holes is left out. The bytes looked at."""
        machine = self._machine
        ram = machine.ram.view
        targets: list[memoryview] = []
        for pa, size in self.extents(offset, length):
            if pa >= 0:
                machine.code_written(pa, size)
                targets.append(ram[pa : pa + size])
            else:
                targets.append(memoryview(bytearray(size)))
        return copy_views(targets, sources)


class SharedMemory(FilePages):
    """Anonymous shared memory of `size` bytes, as mmap(MAP_SHARED | MAP_ANONYMOUS) makes it (mm/shmem.c)."""

    path = b"/dev/zero (deleted)"

    def punch(self, offset: int, length: int) -> bool:
        self.remove(offset >> PAGE_SHIFT, (offset + length) >> PAGE_SHIFT, False)
        return True

    def unmapped(self) -> None:
        self.take_out(0, self._size >> PAGE_SHIFT)


def _contiguous(entries: array[int]) -> bool:
    """Are these frames, the first of which is one, in a row?"""
    first, count = entries[0], len(entries)
    if entries[-1] - first != (count - 1) << PAGE_SHIFT:
        return False
    return count <= 2 or entries == array("Q", range(first, first + (count << PAGE_SHIFT), PAGE_SIZE))


def _join(extents: list[Extent], pa: int, size: int) -> None:
    """Add an extent, joined to the last one when it follows it."""
    if extents:
        last, length = extents[-1]
        if (last + length if last >= 0 else -1) == pa:
            extents[-1] = (last, length + size)
            return
    extents.append((pa, size))


def copy_views(targets: Iterable[memoryview], sources: Iterable[memoryview]) -> int:
    """Copy from one row of pieces of memory to another, until one of them ends; the bytes copied."""
    done = 0
    source_pieces = iter(sources)
    source = next(source_pieces, None)
    at = 0
    for target in targets:
        filled = 0
        size = len(target)
        while filled < size:
            if source is None:
                return done
            part = min(size - filled, len(source) - at)
            target[filled : filled + part] = source[at : at + part]
            filled += part
            at += part
            done += part
            if at == len(source):
                source = next(source_pieces, None)
                at = 0
    return done


def copy_segments(
    memory: AddressSpace, segments: Iterable[tuple[int, int]], limit: int, write: bool, move: Move
) -> int:
    """Move at most `limit` bytes between a program's buffers and what `move(views, bytes before)` moves them to or
    from, until it falls short; the bytes moved. `write`: the buffers are written to.

    Whatever goes wrong after some progress ends it with what was moved, before it with SysError."""
    done = 0
    try:
        for address, length in segments:
            left = min(length, limit - done)
            while left > 0:
                size = min(left, COPIED_AT_ONCE)
                views = memory.views_partial(address, size, write)
                moved = move(views, done)
                done += moved
                address += moved
                left -= moved
                if moved < size:
                    return done
    except OutOfFrames:
        if not done:
            raise SysError(errno.ENOMEM, "the machine's memory is used up") from None
    except SysError:
        if not done:
            raise
    return done
