"""Which frame of guest RAM is free, and how many users every other one has.

There is no Python object a frame. RAM is a row of 2 MiB blocks. A block is untouched, wholly free, wholly in use, or
in between; for one in between `_partial` holds an integer with a bit for each of its free frames, so that a run is
found and freed with a few operations on 512-bit integers, and a block whose last frame comes back is whole again.
Reference counts are 32-bit values in anonymous host memory, which costs nothing before it is touched.

A free frame is always zero and takes no memory from the host: `release` discards what it frees.

Not thread-safe: the kernel lock of the machine guards it.
"""

from __future__ import annotations

import mmap
from array import array
from typing import TYPE_CHECKING

from vmm.layout import LARGE_SIZE, PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmm.memory.physical import GuestRam

BLOCK_FRAMES = LARGE_SIZE // PAGE_SIZE
BLOCK_SHIFT = 9
_FULL = (1 << BLOCK_FRAMES) - 1
_ONES = memoryview(array("I", [1]) * BLOCK_FRAMES)
_TWOS = memoryview(array("I", [2]) * BLOCK_FRAMES)
_ZEROS = memoryview(array("I", [0]) * BLOCK_FRAMES)
_TRIES = 8
"""Partly used blocks that are searched for a run before a whole block is broken."""

Run = tuple[int, int]
"""Guest-physical address of the first frame, number of frames."""


class OutOfFrames(Exception):
    """No frame of guest memory is left."""


class Frames:
    """The allocator of `ram`. Addresses are guest-physical and page-aligned; frame 0 is never given out.

    `counts[n]` is the reference count of frame n (address >> 12), to be read only; `free` and `total` count frames.
    `reclaim(n)` is called when n more frames are wanted than are free, and may release some.
    """

    __slots__ = (
        "_blocks", "_current", "_partial", "_ram", "_untouched", "_whole", "counts", "free", "reclaim", "total",
    )  # fmt: skip

    def __init__(self, ram: GuestRam) -> None:
        self._ram = ram
        self._blocks = ram.size // LARGE_SIZE
        frames = ram.size // PAGE_SIZE
        self.counts = memoryview(mmap.mmap(-1, 4 * frames, mmap.MAP_PRIVATE)).cast("I")
        self._whole: list[int] = []
        """Blocks that were used and are wholly free again; those from `_untouched` on never were used."""
        self._untouched = 1
        self._partial = {0: _FULL ^ 1}
        self._current = 0
        self.total = self.free = frames - 1
        self.reclaim: Callable[[int], object] = lambda wanted: None

    @property
    def free_blocks(self) -> int:
        """Number of blocks that `allocate_large` could give."""
        return self._blocks - self._untouched + len(self._whole)

    def allocate(self) -> int:
        """Address of a zeroed frame, reference count 1. Raises OutOfFrames."""
        if not self.free:
            self.reclaim(1)
        block = self._current
        bits = self._partial.get(block, 0) or self._choose()
        block = self._current
        lowest = bits & -bits
        self._keep(block, bits ^ lowest)
        frame = (block << BLOCK_SHIFT) + lowest.bit_length() - 1
        self.counts[frame] = 1
        self.free -= 1
        return frame << PAGE_SHIFT

    def allocate_run(self, count: int) -> list[Run]:
        """`count` zeroed frames, reference count 1 each, in as few contiguous runs as is cheap to find.

        Raises OutOfFrames when there are fewer; then none is taken."""
        if count > self.free:
            self.reclaim(count - self.free)
            if count > self.free:
                raise OutOfFrames
        runs: list[Run] = []
        while count >= BLOCK_FRAMES and (address := self.allocate_large()):
            add_run(runs, address, BLOCK_FRAMES)
            count -= BLOCK_FRAMES
        while count:
            address, found = self._take(min(count, BLOCK_FRAMES))
            add_run(runs, address, found)
            count -= found
        return runs

    def allocate_large(self) -> int:
        """Address of a zeroed, 2 MiB-aligned block of 512 frames, reference count 1 each; 0 when there is none."""
        if self._whole:
            block = self._whole.pop()
        elif self._untouched < self._blocks:
            block = self._untouched
            self._untouched += 1
        else:
            return 0
        first = block << BLOCK_SHIFT
        self.counts[first : first + BLOCK_FRAMES] = _ONES
        self.free -= BLOCK_FRAMES
        return first << PAGE_SHIFT

    def sole_block(self, first: int) -> bool:
        """Has each frame of the block that begins with frame number `first` exactly one user?"""
        return bool(self.counts[first : first + BLOCK_FRAMES] == _ONES)

    def reference(self, address: int, count: int = 1) -> None:
        """One more user of each of `count` contiguous frames. Raises ValueError for a frame that is free."""
        counts = self.counts
        first = address >> PAGE_SHIFT
        end = first + count
        while first < end:
            part = min(end - first, BLOCK_FRAMES)
            span = counts[first : first + part]
            if span == _ONES[:part]:
                span[:] = _TWOS[:part]
            else:
                for frame in range(first, first + part):
                    if not counts[frame]:
                        raise ValueError(f"frame {frame:#x} is not in use")
                    counts[frame] += 1
            first += part

    def release(self, address: int, count: int = 1) -> None:
        """One user fewer of each of `count` contiguous frames; those without a user are discarded and free.

        On KVM discarding drops their translations as well; elsewhere the caller revokes them first."""
        self.release_runs(((address, count),))

    def release_runs(self, runs: Iterable[Run]) -> list[Run]:
        """`release` for many runs; returns the runs of frames that still have a user.

        Raises ValueError for a frame that is free already."""
        kept: list[Run] = []
        dead: list[Run] = []
        counts = self.counts
        for address, count in runs:
            first = address >> PAGE_SHIFT
            while count > 0:
                part = min(count, BLOCK_FRAMES)
                span = counts[first : first + part]
                if span == _ONES[:part]:
                    span[:] = _ZEROS[:part]
                    add_run(dead, first << PAGE_SHIFT, part)
                elif span == _TWOS[:part]:
                    span[:] = _ONES[:part]
                    add_run(kept, first << PAGE_SHIFT, part)
                else:
                    self._release_each(first, part, dead, kept)
                first += part
                count -= part
        for address, count in joined(dead):
            self._ram.discard(address, count << PAGE_SHIFT)
            self._free(address >> PAGE_SHIFT, count)
        return kept

    def _release_each(self, first: int, count: int, dead: list[Run], kept: list[Run]) -> None:
        counts = self.counts
        for frame in range(first, first + count):
            users = counts[frame]
            if not users:
                raise ValueError(f"frame {frame:#x} is released twice")
            counts[frame] = users - 1
            add_run(kept if users > 1 else dead, frame << PAGE_SHIFT, 1)

    def _free(self, first: int, count: int) -> None:
        """Frames without a user are free from now on."""
        self.free += count
        while count:
            block = first >> BLOCK_SHIFT
            index = first & (BLOCK_FRAMES - 1)
            part = min(count, BLOCK_FRAMES - index)
            self._keep(block, self._partial.get(block, 0) | ((1 << part) - 1) << index)
            first += part
            count -= part

    def _keep(self, block: int, bits: int) -> None:
        """Note which frames of a block are free."""
        if bits == _FULL:
            self._partial.pop(block, None)
            self._whole.append(block)
        elif bits:
            self._partial[block] = bits
        else:
            self._partial.pop(block, None)

    def _choose(self) -> int:
        """Make a partly used block the current one, or break a whole block; returns its free frames."""
        if self._partial:
            self._current = next(iter(self._partial))
            return self._partial[self._current]
        return self._break()

    def _break(self) -> int:
        """Make a whole block the current, partly used one."""
        if self._whole:
            block = self._whole.pop()
        elif self._untouched < self._blocks:
            block = self._untouched
            self._untouched += 1
        else:
            raise OutOfFrames
        self._current = block
        self._partial[block] = _FULL
        return _FULL

    def _take(self, count: int) -> Run:
        """A run of `count` frames (at most a block), or, when none is found soon, a shorter one."""
        block = self._current
        bits = self._partial.get(block, 0) or self._choose()
        index = _find(bits, count)
        if index < 0:
            bits, index = self._search(count)
        block = self._current
        if index < 0:
            low = (bits & -bits).bit_length() - 1
            rest = ~(bits >> low)
            index, count = low, min(count, (rest & -rest).bit_length() - 1)
        self._keep(block, bits ^ ((1 << count) - 1) << index)
        first = (block << BLOCK_SHIFT) + index
        self.counts[first : first + count] = _ONES[:count]
        self.free -= count
        return first << PAGE_SHIFT, count

    def _search(self, count: int) -> tuple[int, int]:
        """Make a block with a run of `count` free frames the current one; returns its free frames and the run's index
        (-1: there is no such block, and the current one has some free frame)."""
        for block, _ in zip(self._partial, range(_TRIES), strict=False):
            index = _find(self._partial[block], count)
            if index >= 0:
                self._current = block
                return self._partial[block], index
        if self.free_blocks:
            return self._break(), 0
        return self._choose(), -1


def _find(bits: int, count: int) -> int:
    """Index of the lowest run of `count` set bits, or -1."""
    shift = 1
    while shift < count and bits:
        step = min(shift, count - shift)
        bits &= bits >> step
        shift += step
    return (bits & -bits).bit_length() - 1


def add_run(runs: list[Run], address: int, count: int) -> None:
    """Add a run, joined to the last one when it follows it."""
    if runs:
        last, length = runs[-1]
        if last + (length << PAGE_SHIFT) == address:
            runs[-1] = (last, length + count)
            return
    runs.append((address, count))


def joined(runs: list[Run]) -> list[Run]:
    """The same frames in order of address, in as few runs as there can be."""
    if len(runs) < 2:
        return runs
    result: list[Run] = []
    for address, count in sorted(runs):
        add_run(result, address, count)
    return result
