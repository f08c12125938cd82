"""What the address spaces of one machine share: its RAM, its frames, and the accelerator that may hold translations."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from devices.random import Random
from vmm.layout import PAGE_SHIFT
from vmm.memory.frames import add_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.memory.pagecache import PageCache
    from vmm.cpu import Accelerator
    from vmm.memory.frames import Frames, Run
    from vmm.memory.pagetable import KernelHalf
    from vmm.memory.physical import GuestRam

REVOKE_RUNS = 48
"""More runs than this are revoked by `revoke_all`: 3 us each on KVM, against 50-180 us and a re-fault of every page."""
RESERVE = 32
"""While less than a 32nd of all frames is free, page caches are shrunk ahead of need."""
TABLES_KEPT = 64
"""Runs of frames of dead address spaces' tables that wait for one revoke_all()."""
FUTILE = 64
"""Calls of make_room() that do nothing after one that found nothing."""


class Pinned:
    """Guest memory that the host uses while the kernel lock is dropped: its frames are not reused before `release`.

    `views` are the memory, in order. Pinning takes no reference, which would make a write by the program copy the page
    away from under the host; frames that are freed meanwhile are kept until the end instead.
    """

    __slots__ = ("_held", "_machine", "_runs", "views")

    def __init__(self, machine: MachineMemory, extents: list[tuple[int, int]]) -> None:
        view = machine.ram.view
        self._machine = machine
        self._runs = [(pa, pa + size) for pa, size in extents]
        self._held: list[Run] = []
        self.views = [view[pa : pa + size] for pa, size in extents]
        machine.pins.append(self)

    def covers(self, address: int) -> bool:
        """Does the host use a part of this frame?"""
        return any(low & -4096 <= address < high for low, high in self._runs)

    def hold(self, runs: list[Run]) -> None:
        """These frames lose a user: keep those that are pinned."""
        for address, count in runs:
            for low, high in self._runs:
                first = max(address, low & -4096)
                last = min(address + (count << PAGE_SHIFT), (high + 4095) & -4096)
                if first < last:
                    self._machine.frames.reference(first, (last - first) >> PAGE_SHIFT)
                    self._held.append((first, (last - first) >> PAGE_SHIFT))

    def release(self) -> None:
        """The host is done. Needs the kernel lock."""
        self._machine.pins.remove(self)
        for view in self.views:
            view.release()
        self._machine.release(self._held)

    def __enter__(self) -> Pinned:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


class MachineMemory:
    """Guest RAM and who uses it. `total` frames are what the guest is told it has."""

    def __init__(
        self, ram: GuestRam, frames: Frames, half: KernelHalf, accelerator: Accelerator, random: Random | None = None
    ) -> None:
        self.ram = ram
        self.frames = frames
        self.half = half
        self.accelerator = accelerator
        self.random = random or Random()
        self.pins: list[Pinned] = []
        self.caches: WeakKeyDictionary[PageCache, None] = WeakKeyDictionary()
        """Page caches of host files that hold frames, the one that was used last at the end."""
        self.dirty: dict[PageCache, None] = {}
        """Those of them that hold something which the host does not have yet."""
        self.on_dirty: Callable[[], object] = lambda: None
        """Called when there is something to be written to the host, and there was nothing before."""
        self._pause = 0
        frames.reclaim = self.reclaim
        self.on_out_of_memory: Callable[[], None] = lambda: None
        """Called with the kernel lock held when a copy to or from a program finds no frame; is to free some, later."""
        self.populates = accelerator.populates
        self.large_pages = accelerator.large_pages
        self.discard_revokes = accelerator.discard_revokes
        self.keeps_tables = accelerator.discard_revokes and accelerator.populates
        """revoke_all() is dear, and what is discarded needs none: see retire()."""
        self._tables: list[Run] = []
        self._code = mmap.mmap(-1, ram.size >> PAGE_SHIFT, mmap.MAP_PRIVATE)
        """A byte for each frame: 1 if it was mapped executable since it was allocated."""

    @property
    def total(self) -> int:
        return self.frames.total

    def populate(self, runs: list[Run]) -> None:
        """Have the host back what is about to be touched, where that pays."""
        if self.populates:
            for address, count in runs:
                self.ram.populate(address, count << PAGE_SHIFT)

    # Page caches

    @property
    def cached(self) -> int:
        """Frames that hold pages of host files."""
        return sum(cache.present for cache in self.caches)

    def reclaim(self, wanted: int) -> int:
        """Free frames of clean pages of host files that are mapped nowhere, `wanted` of them or as many as there are;
        how many it were. Safe wherever a frame may be allocated."""
        freed = self.free_tables()
        for cache in list(self.caches):
            if freed >= wanted:
                break
            freed += cache.shrink(wanted - freed, False)
        return freed

    def make_room(self) -> None:
        """Where frames are scarce, free clean pages of host files ahead of need, mapped ones too. Only for a caller
        that holds no address of a frame, as a view of a program's memory is."""
        reserve = self.total // RESERVE
        if not self.caches or self.frames.free >= reserve:
            return
        if self._pause:
            self._pause -= 1  # there was nothing the last time
            return
        wanted = 2 * reserve - self.frames.free
        freed = self.reclaim(wanted)
        for cache in list(self.caches):
            if freed >= wanted:
                break
            freed += cache.shrink(wanted - freed, True)
        if not freed:
            self._pause = FUTILE

    def write_back(self) -> None:
        """Give the host all that it does not have yet of its files."""
        for cache in list(self.dirty):
            cache.write_back()

    def is_pinned(self, address: int) -> bool:
        """May the host write to the frame while the kernel lock is dropped?"""
        return any(pin.covers(address) for pin in self.pins)

    # Code

    def mark_code(self, address: int, count: int) -> None:
        """`count` frames are mapped executable."""
        first = address >> PAGE_SHIFT
        self._code[first : first + count] = b"\1" * count

    def is_code(self, address: int, count: int = 1) -> bool:
        """Was any of these frames mapped executable?"""
        first = address >> PAGE_SHIFT
        return self._code.find(b"\1", first, first + count) >= 0

    def code_written(self, address: int, size: int) -> None:
        """The monitor wrote to guest-physical memory: if it may have been executed, what was made of it is stale."""
        first = address >> PAGE_SHIFT
        if self.is_code(address, ((address + size - 1) >> PAGE_SHIFT) - first + 1):
            self.accelerator.forget_code(address, size)

    # Taking back

    def retire(self, runs: list[Run], tables: list[Run]) -> None:
        """An address space that no CPU runs in any more is taken down: `runs` are what it mapped.

        A new table in the place of an old one would be taken for that until revoke_all(). Where that is dear, the
        frames of tables wait until there are many. What was mapped needs no revocation: it is discarded where it has no
        other user, and with the tables nobody gets to it."""
        if not self.keeps_tables:
            self.accelerator.revoke_all()
            self.release(runs)
            self.frames.release_runs(tables)
            return
        self.release(runs)
        self._tables += tables
        if len(self._tables) > TABLES_KEPT:
            self.free_tables()

    def free_tables(self) -> int:
        """Free what retire() has kept; how many frames it were."""
        tables, self._tables = self._tables, []
        if tables:
            self.accelerator.revoke_all()
            self.frames.release_runs(tables)
        return sum(count for _, count in tables)

    def revoke(self, runs: list[Run]) -> None:
        """Leaves that pointed to these frames were changed or cleared."""
        if len(runs) > REVOKE_RUNS:
            self.accelerator.revoke_all()
        else:
            for address, count in runs:
                self.accelerator.revoke(address, count << PAGE_SHIFT)

    def drop(self, runs: list[Run]) -> None:
        """Leaves that pointed to these frames were cleared, and their references end."""
        if self.discard_revokes:
            self.revoke(self.release(runs))
        else:
            self.revoke(runs)
            self.release(runs)

    def release(self, runs: list[Run]) -> list[Run]:
        """References to frames that no CPU reaches through them any more end; those that still have a user."""
        for pin in self.pins:
            pin.hold(runs)
        kept = self.frames.release_runs(runs)
        self._forget_code(runs)
        return kept

    def _forget_code(self, runs: list[Run]) -> None:
        """Frames that are free are no code any more."""
        counts = self.frames.counts
        for address, count in runs:
            if self.is_code(address, count):
                first = address >> PAGE_SHIFT
                gone: list[Run] = []
                for frame in range(first, first + count):
                    if self._code[frame] and not counts[frame]:
                        self._code[frame] = 0
                        add_run(gone, frame << PAGE_SHIFT, 1)
                for start, length in gone:
                    self.accelerator.forget_code(start, length << PAGE_SHIFT)
