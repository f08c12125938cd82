"""Virtual memory areas: what a range of an address space is mapped to, and the sorted list of them.

Rejected: a balanced tree. A program has tens of areas, rarely thousands; bisect on a list of integers finds one in
0.2 us, and moving a list's tail is a memmove.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from devices.memory.abi import STACK_GUARD_GAP, VM_GROWSDOWN
from devices.memory.backing import SharedBacking
from vmm.layout import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.memory.backing import Backing, MappableFile
    from devices.memory.core import Core


class Vma:
    """struct vm_area_struct: [start, end) with VM_* `flags`, whose low bits are PROT_READ, PROT_WRITE and PROT_EXEC.

    `backing` is None for private anonymous memory; else `offset` is the place of `start` in it, in bytes. `file` is the
    open file description that was mapped, if it was one: the area keeps it open (vm_file).
    """

    __slots__ = ("backing", "end", "file", "flags", "offset", "start")

    def __init__(
        self,
        start: int,
        end: int,
        flags: int,
        backing: Backing | None = None,
        offset: int = 0,
        file: MappableFile | None = None,
    ) -> None:
        self.start = start
        self.end = end
        self.flags = flags
        self.backing = backing
        self.offset = offset
        self.file = file

    @property
    def pages(self) -> int:
        return (self.end - self.start) >> PAGE_SHIFT

    @property
    def gap_start(self) -> int:
        """Where the area begins with the guard gap below it, if it is a stack (vm_start_gap())."""
        return max(0, self.start - STACK_GUARD_GAP) if self.flags & VM_GROWSDOWN else self.start

    def offset_of(self, address: int) -> int:
        """Place of `address` in the backing, in bytes."""
        return self.offset + address - self.start

    def part(self, start: int, end: int) -> Vma:
        """A new area like a part of this one."""
        offset = self.offset_of(start) if self.backing is not None else 0
        return Vma(start, end, self.flags, self.backing, offset, self.file)

    def continues(self, other: Vma) -> bool:
        """Could `other`, which ends where this one starts, be one area with it?"""
        return (
            other.end == self.start
            and other.flags == self.flags
            and other.backing is self.backing
            and other.file is self.file
            and (self.backing is None or other.offset_of(self.start) == self.offset)
        )

    def __repr__(self) -> str:
        return f"<Vma {self.start:#x}-{self.end:#x} flags {self.flags:#x} {self.backing!r}+{self.offset:#x}>"


class VmaList:
    """The areas of an address space, `space`, in order, none overlapping, neighbours that are alike joined."""

    __slots__ = ("_space", "_starts", "_vmas")

    def __init__(self, space: Core | None = None) -> None:
        self._space = space
        self._starts: list[int] = []
        self._vmas: list[Vma] = []

    def __len__(self) -> int:
        return len(self._vmas)

    def __iter__(self) -> Iterator[Vma]:
        return iter(self._vmas)

    def _index(self, address: int) -> int:
        """Index of the first area that ends above `address`."""
        index = bisect_right(self._starts, address)
        return index - 1 if index and self._vmas[index - 1].end > address else index

    def find(self, address: int) -> Vma | None:
        """The first area that ends above `address` (find_vma()): it contains it, or lies above it."""
        index = self._index(address)
        return self._vmas[index] if index < len(self._vmas) else None

    def at(self, address: int) -> Vma | None:
        """The area that contains `address`."""
        index = bisect_right(self._starts, address) - 1
        return self._vmas[index] if index >= 0 and self._vmas[index].end > address else None

    def before(self, address: int) -> Vma | None:
        """The last area that starts below `address`."""
        index = bisect_right(self._starts, address - 1) - 1
        return self._vmas[index] if index >= 0 else None

    def overlapping(self, start: int, end: int) -> list[Vma]:
        """The areas that have a byte in [start, end), whole."""
        return self._vmas[self._index(start) : bisect_right(self._starts, end - 1)]

    def covered(self, start: int, end: int) -> bool:
        """Is there no hole in [start, end)?"""
        for vma in self.overlapping(start, end):
            if vma.start > start:
                return False
            start = vma.end
        return start >= end

    def insert(self, vma: Vma) -> Vma:
        """Add an area where none is; the area that it is part of afterwards."""
        self._opened(vma)
        index = bisect_right(self._starts, vma.start)
        self._starts.insert(index, vma.start)
        self._vmas.insert(index, vma)
        self._join(index + 1)
        return self._vmas[index - 1] if self._join(index) else self._vmas[index]

    def _join(self, index: int) -> bool:
        """Make area `index` and the one before it one, if they can be."""
        if not 0 < index < len(self._vmas) or not self._vmas[index].continues(self._vmas[index - 1]):
            return False
        gone = self._vmas.pop(index)
        del self._starts[index]
        self._vmas[index - 1].end = gone.end
        self._closed(gone)
        return True

    def _opened(self, vma: Vma) -> None:
        if isinstance(vma.backing, SharedBacking):
            vma.backing.vma_open(self._space)
        if vma.file is not None:
            vma.file.hold()

    def _closed(self, vma: Vma) -> None:
        if isinstance(vma.backing, SharedBacking):
            vma.backing.vma_close(self._space)
        if vma.file is not None:
            vma.file.put_locked()

    def _split(self, address: int) -> None:
        index = bisect_right(self._starts, address) - 1
        if index < 0:
            return
        vma = self._vmas[index]
        if vma.start < address < vma.end:
            upper = vma.part(address, vma.end)
            vma.end = address
            self._starts.insert(index + 1, address)
            self._vmas.insert(index + 1, upper)
            self._opened(upper)

    def splits(self, start: int, end: int) -> int:
        """How many more areas there are if [start, end) is to begin and end at borders."""
        return sum(1 for at in (start, end) if (vma := self.at(at)) is not None and vma.start < at)

    def carve(self, start: int, end: int) -> list[Vma]:
        """The areas of [start, end), split at its ends so that they lie in it wholly."""
        self._split(start)
        self._split(end)
        return self.overlapping(start, end)

    def rejoin(self, start: int, end: int) -> None:
        """Join neighbours around and in [start, end) that have become alike."""
        first = max(1, bisect_right(self._starts, start) - 1)
        for index in range(min(len(self._vmas) - 1, bisect_right(self._starts, end)), first - 1, -1):
            self._join(index)

    def remove(self, start: int, end: int) -> list[Vma]:
        """Take the areas of [start, end) out; the caller releases their pages, then `close`s them."""
        gone = self.carve(start, end)
        first = bisect_right(self._starts, start - 1)
        del self._starts[first : first + len(gone)], self._vmas[first : first + len(gone)]
        return gone

    def close(self, gone: list[Vma]) -> None:
        """What `remove` gave has no page mapped any more."""
        for vma in gone:
            self._closed(vma)

    def move_start(self, vma: Vma, start: int) -> None:
        """Let a stack grow down to `start`, above the area below it."""
        index = bisect_right(self._starts, vma.start) - 1
        self._starts[index] = vma.start = start

    # Free space

    def gap_above(self, length: int, low: int, high: int) -> int:
        """The lowest address >= `low` with `length` free bytes, all below `high`; -1 if there is none."""
        start = low
        for vma in self._vmas[self._index(low) :]:
            if vma.gap_start >= start + length or start + length > high:
                break
            start = max(start, vma.end)
        return start if start + length <= high else -1

    def gap_below(self, length: int, low: int, high: int) -> int:
        """The highest address with `length` free bytes in [low, high); -1 if there is none."""
        index = bisect_right(self._starts, high - 1)
        end = min(high, self._vmas[index].gap_start) if index < len(self._vmas) else high
        while index:
            index -= 1
            vma = self._vmas[index]
            if vma.end + length <= end or end - length < low:
                break
            end = min(end, vma.gap_start)
        return end - length if end - length >= low else -1
