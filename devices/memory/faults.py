"""Page faults: what puts pages into an address space.

A fault costs 30-100 us where the CPU has to leave the guest, a mapped page 2-5 us, a page the host has not populated
22 us (software KVM). So a fault maps a window of pages: 16 at a random place; twice as many as the time before where
the program goes on just beyond (or below) the last window, up to 512; the whole aligned 2 MiB region, out of one block
of frames, where the window has grown to that. Memory that a program touches here and there costs it at most 16 pages a
touch, and a sequential one a fault per 2 MiB. What is mapped is populated in the host at once.

A 2 MiB region becomes a 2 MiB page only where the accelerator gains from that. Software KVM does not: it shadows it
with 4 KiB pages, and to take one page out would need `revoke_all`: 50 ms with 128 MiB in use, against 3 us.

There is no shared zero page: what a program reads first it mostly writes next. A private mapping of a file gets its own
copy of the pages at the first access, so that it never faults twice, where the file says that it may; other frames that
a `SharedBacking` owns are mapped read-only in private mappings, and copied when written. Shared mappings of a host's
file are mapped read-only as well until they are written to, so that what is dirty is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.memory.abi import (
    BUS_ADRERR,
    MMAP_MIN_ADDR,
    RLIMIT_STACK,
    SEGV_ACCERR,
    SEGV_MAPERR,
    SIGBUS,
    SIGSEGV,
    STACK_GUARD_GAP,
    VM_ACCESS,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGEPAGE,
    VM_NOHUGEPAGE,
    VM_RAND_READ,
    VM_SHARED,
    VM_WRITE,
)
from devices.memory.backing import SharedBacking
from devices.memory.core import PAGE_FLAGS, Core
from vmm.cpu import PF_FETCH, PF_WRITE
from vmm.layout import LARGE_SIZE, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, TASK_SIZE
from vmm.memory.frames import BLOCK_FRAMES, OutOfFrames
from vmm.memory.pagetable import ADDRESS, LARGE, NX, WRITE

if TYPE_CHECKING:
    from devices.memory.backing import Backing
    from devices.memory.machine import MachineMemory
    from devices.memory.vma import Vma
    from vmm.memory.frames import Run

WINDOW = 16
"""Pages that a fault at a random place maps, aligned."""
FILE_WINDOW = 128
"""Pages that a fault reads from a file at most."""
STREAMS = 32
"""Sequential accesses that are remembered at once, two entries each."""


class Problem:
    """Why a fault could not be served."""

    __slots__ = ()


class MemoryFault(Problem):
    """The program is to get `signal` with si_code `code` for `address`; `error` is the page fault's error code."""

    __slots__ = ("address", "code", "error", "signal")

    def __init__(self, signal: int, code: int, address: int, error: int) -> None:
        self.signal = signal
        self.code = code
        self.address = address
        self.error = error

    def __repr__(self) -> str:
        return f"<MemoryFault signal {self.signal} code {self.code} at {self.address:#x}>"


class OutOfMemory(Problem):
    """No frame is left: somebody has to go; the access may then be tried again."""

    __slots__ = ()


OUT_OF_MEMORY = OutOfMemory()


class Faults(Core):
    """The part of an address space that serves page faults."""

    def __init__(self, machine: MachineMemory) -> None:
        super().__init__(machine)
        self._streams: dict[int, int] = {}
        """Where a sequential access would fault next -> pages of its last window (negative: it goes downwards)."""

    def fault(self, address: int, error: int) -> Problem | None:
        """Serve a page fault of the program at `address` with the error code `error` (PF_*); None: the access may be
        tried again."""
        self.machine.make_room()
        return self.fault_in(address, error)

    def fault_in(self, address: int, error: int) -> Problem | None:
        """The same for an access that the monitor makes, which may hold views of other pages."""
        vma = self.vmas.find(address) if address < TASK_SIZE else None
        if vma is None or (address < vma.start and not self._grow(vma, address)):
            return MemoryFault(SIGSEGV, SEGV_MAPERR, address, error)
        flags = vma.flags
        if error & PF_WRITE:
            allowed = flags & VM_WRITE
        elif error & PF_FETCH:
            allowed = flags & VM_EXEC
        else:
            allowed = flags & VM_ACCESS
        if not allowed:
            return MemoryFault(SIGSEGV, SEGV_ACCERR, address, error)
        try:
            served = self._serve(vma, address & PAGE_MASK, bool(error & PF_WRITE))
        except OutOfFrames:
            return OUT_OF_MEMORY
        except (OSError, SysError):
            served = False
        return None if served else MemoryFault(SIGBUS, BUS_ADRERR, address, error)

    def _serve(self, vma: Vma, page: int, write: bool, wanted: tuple[int, int] | None = None) -> bool:
        """Make a page that its area allows to be accessed accessible; False: its backing has none there.

        `wanted` is the range around it that is to be mapped as far as it can, instead of a guess. Raises OutOfFrames,
        and OSError when the backing could not be read."""
        entry = self.table.entry(page)
        if entry:
            if write and not entry & WRITE:
                low = page & -(WINDOW << PAGE_SHIFT)
                self._allow_write(vma, page, entry, low, low + (WINDOW << PAGE_SHIFT))
            return True
        start, end, window = self._window(vma, page, wanted)
        try:
            end = self._fill(vma, start, end)
        except OutOfFrames:
            if end - start == PAGE_SIZE:
                raise
            start = page
            end = self._fill(vma, page, page + PAGE_SIZE)
        if end <= page:
            return False
        self._remember(start, end, window)
        if write and not (entry := self.table.entry(page)) & WRITE:
            self._allow_write(vma, page, entry, start, end)
        return True

    # How much

    def _window(self, vma: Vma, page: int, wanted: tuple[int, int] | None) -> tuple[int, int, int]:
        """The pages without an entry to map for a fault at `page`: (start, end, size of window asked for)."""
        window = WINDOW
        went = self._streams.pop(page, 0)
        if wanted is not None:
            low, high = wanted
        elif vma.flags & VM_HUGEPAGE:
            window = BLOCK_FRAMES
            low, high = page & -LARGE_SIZE, (page & -LARGE_SIZE) + LARGE_SIZE
        elif vma.flags & VM_RAND_READ:
            low, high = page, page + PAGE_SIZE
        elif went:
            window = min(2 * abs(went), BLOCK_FRAMES if vma.backing is None else FILE_WINDOW)
            low = page if went > 0 else page + PAGE_SIZE - (window << PAGE_SHIFT)
            high = low + (window << PAGE_SHIFT)
        else:
            low = page & -(WINDOW << PAGE_SHIFT)
            high = low + (WINDOW << PAGE_SHIFT)
        start, end = self.table.vacant(page, max(low, vma.start), min(high, vma.end))
        if isinstance(vma.backing, SharedBacking):
            base = vma.start - (vma.offset & PAGE_MASK)
            first, last = vma.backing.around(
                (page - base) >> PAGE_SHIFT,
                (start - base) >> PAGE_SHIFT,
                (end - base) >> PAGE_SHIFT,
                wanted is not None or went != 0,
            )
            start, end = base + (first << PAGE_SHIFT), base + (last << PAGE_SHIFT)
        return start, end, window

    def _remember(self, start: int, end: int, window: int) -> None:
        streams = self._streams
        streams[end] = window
        streams[start - PAGE_SIZE] = -window
        while len(streams) > 2 * STREAMS:
            del streams[next(iter(streams))]

    # What

    def _fill(self, vma: Vma, start: int, end: int) -> int:
        """Map pages that have no entry and lie in one 2 MiB region; where the mapped part ends (pages beyond the end of
        the backing are not mapped)."""
        backing = vma.backing
        if backing is None:
            self._fill_zero(vma, start, end)
            return end
        self.table.prepare(start)
        if isinstance(backing, SharedBacking) and not (
            backing.copies_private and vma.flags & (VM_SHARED | VM_WRITE) == VM_WRITE
        ):
            return self._fill_shared(vma, backing, start, end)
        return self._fill_private(vma, backing, start, end)

    def _fill_zero(self, vma: Vma, start: int, end: int) -> None:
        flags = PAGE_FLAGS[vma.flags & VM_ACCESS]
        whole = end - start == LARGE_SIZE
        if whole and self.machine.large_pages and not vma.flags & VM_NOHUGEPAGE and self._fill_large(start, flags):
            return
        self.table.prepare(start)
        runs = self.machine.frames.allocate_run((end - start) >> PAGE_SHIFT)
        self.machine.populate(runs)
        self._map_runs(start, runs, flags)

    def _fill_large(self, start: int, flags: int) -> bool:
        """Map a 2 MiB page; False where there is no block for it, or its place is taken by a table."""
        machine = self.machine
        if self.table.region(start):
            return False
        self.table.prepare(start, large=True)
        block = machine.frames.allocate_large()
        if not block:
            return False
        runs = [(block, BLOCK_FRAMES)]
        machine.populate(runs)
        self.table.map_large(start, block, flags)
        if not flags & NX:
            machine.mark_code(block, BLOCK_FRAMES)
        return True

    def _map_runs(self, va: int, runs: list[Run], flags: int) -> None:
        for pa, count in runs:
            self.table.map(va, pa, count, flags)
            if not flags & NX:
                self.machine.mark_code(pa, count)
            va += count << PAGE_SHIFT

    def _fill_private(self, vma: Vma, backing: Backing, start: int, end: int) -> int:
        """Map copies of a file's pages."""
        machine = self.machine
        runs = machine.frames.allocate_run((end - start) >> PAGE_SHIFT)
        offset = vma.offset_of(start)
        got = 0
        try:
            for pa, count in runs:
                size = count << PAGE_SHIFT
                read = backing.read_into(machine.ram.view[pa : pa + size], offset + got)
                got += read
                if read < size:
                    break
        except OSError:
            machine.release(runs)
            raise
        have = (got + PAGE_SIZE - 1) >> PAGE_SHIFT
        used, rest = cut(runs, have)
        machine.release(rest)
        self._map_runs(start, used, PAGE_FLAGS[vma.flags & VM_ACCESS])
        return start + (have << PAGE_SHIFT)

    def _fill_shared(self, vma: Vma, backing: SharedBacking, start: int, end: int) -> int:
        """Map frames that the backing owns."""
        machine = self.machine
        runs = backing.frames_at(vma.offset_of(start) >> PAGE_SHIFT, (end - start) >> PAGE_SHIFT)
        flags = PAGE_FLAGS[vma.flags & VM_ACCESS]
        if not vma.flags & VM_SHARED or backing.tracks_writes:
            flags &= ~WRITE
        for pa, count in runs:
            machine.frames.reference(pa, count)
        machine.populate(runs)
        self._map_runs(start, runs, flags)
        return start + (sum(count for _, count in runs) << PAGE_SHIFT)

    def _allow_write(self, vma: Vma, page: int, entry: int, low: int, high: int) -> None:
        """A write to a present page that its area allows, but not its entry. Where nothing is to be copied, the pages
        [low, high) around it are made writable as well."""
        flags = PAGE_FLAGS[vma.flags & VM_ACCESS]
        low, high = max(low, vma.start), min(high, vma.end)
        if vma.flags & VM_SHARED:
            backing = vma.backing
            if isinstance(backing, SharedBacking) and backing.tracks_writes:
                backing.written(vma.offset_of(low) >> PAGE_SHIFT, vma.offset_of(high) >> PAGE_SHIFT)
            self.table.protect(low, high, flags, True)
        elif entry & LARGE or self.machine.frames.counts[(entry & ADDRESS) >> PAGE_SHIFT] > 1:
            self._copy_on_write(page, entry, flags)
        else:
            self.table.protect(low, high, flags, False)

    def _copy_on_write(self, page: int, entry: int, flags: int) -> None:
        """Give the address space a frame of its own for a page, if others use the one that it has."""
        table, machine = self.table, self.machine
        if entry & LARGE:
            if machine.frames.sole_block((entry & ADDRESS) >> PAGE_SHIFT):
                base = page & -LARGE_SIZE
                table.protect(base, base + LARGE_SIZE, flags, False)
                return
            machine.revoke(table.split(page | PAGE_SIZE))
            entry = table.entry(page)
            if machine.frames.counts[(entry & ADDRESS) >> PAGE_SHIFT] == 1:
                table.protect(page, page + PAGE_SIZE, flags, False)
                return
        old = entry & ADDRESS
        new = machine.frames.allocate()
        view = machine.ram.view
        view[new : new + PAGE_SIZE] = view[old : old + PAGE_SIZE]
        table.replace(page, new, flags)
        if not flags & NX:
            machine.mark_code(new, 1)
        self._drop([(old, 1)])

    # Stacks

    def _grow(self, vma: Vma, address: int) -> bool:
        """Extend a stack down to the page of `address` if it may (expand_downwards()); by 16 pages if those may too."""
        if not vma.flags & VM_GROWSDOWN:
            return False
        page = address & PAGE_MASK
        if not self._may_grow(vma, page):
            return False
        ahead = page & -(WINDOW << PAGE_SHIFT)
        start = ahead if self._may_grow(vma, ahead) else page
        self.account(vma.flags, (vma.start - start) >> PAGE_SHIFT)
        self.vmas.move_start(vma, start)
        return True

    def _may_grow(self, vma: Vma, start: int) -> bool:
        if start < MMAP_MIN_ADDR:
            return False
        below = self.vmas.before(vma.start)
        if below is not None:
            if start < below.end:
                return False
            if not below.flags & VM_GROWSDOWN and below.flags & VM_ACCESS and start - below.end < STACK_GUARD_GAP:
                return False
        pages = (vma.start - start) >> PAGE_SHIFT
        return (
            vma.end - start <= self.limit(RLIMIT_STACK)
            and self.may_expand(vma.flags, pages)
            and self.may_lock(vma.flags, pages)
        )


def cut(runs: list[Run], count: int) -> tuple[list[Run], list[Run]]:
    """Runs of the first `count` frames, and of the rest."""
    first: list[Run] = []
    rest: list[Run] = []
    for address, length in runs:
        part = min(count, length)
        if part:
            first.append((address, part))
        if part < length:
            rest.append((address + (part << PAGE_SHIFT), length - part))
        count -= part
    return first, rest
