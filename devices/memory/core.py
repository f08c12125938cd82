"""The core of an address space: its areas and its page table, kept in step when pages are taken out or lose rights.

Order of every change: what can fail first (limits, splitting a 2 MiB page, which may need a frame), then areas, then
page table entries, then revocation, and only then are frames given up (fact: a CPU may use a stale entry until then).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.memory.abi import (
    RLIM_INFINITY,
    RLIMIT_AS,
    RLIMIT_DATA,
    RLIMIT_MEMLOCK,
    RLIMIT_STACK,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_READ,
    VM_SHARED,
    VM_WRITE,
)
from devices.memory.backing import SharedBacking
from devices.memory.vma import VmaList
from vmm.layout import PAGE_SHIFT, PAGE_SIZE, TASK_SIZE
from vmm.memory.pagetable import ADDRESS, NX, PRESENT, USER, WRITE, PageTable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from devices.memory.machine import MachineMemory
    from devices.memory.vma import Vma
    from vmm.memory.frames import Run

UNLIMITED = (RLIM_INFINITY, RLIM_INFINITY)
DEFAULT_RLIMITS = {RLIMIT_STACK: (8 << 20, RLIM_INFINITY), RLIMIT_MEMLOCK: (8 << 20, 8 << 20)}

PAGE_FLAGS = tuple(
    USER
    | (PRESENT if prot & (VM_READ | VM_WRITE | VM_EXEC) else 0)
    | (WRITE if prot & VM_WRITE else 0)
    | (0 if prot & VM_EXEC else NX)
    for prot in range(8)
)
"""Page table flags by VM_READ | VM_WRITE | VM_EXEC. As on x86, what may be written or executed may be read."""


class Core:
    """Areas, page table, limits and counts of one address space. Raises OutOfFrames."""

    rlimits: Mapping[int, tuple[int, int]] | Sequence[tuple[int, int]]
    """Of the process: (soft, hard) by RLIMIT_* number."""
    ipc_lock: bool
    """The process has CAP_IPC_LOCK: RLIMIT_MEMLOCK does not bind it."""

    def __init__(self, machine: MachineMemory) -> None:
        self.machine = machine
        self.vmas = VmaList(self)
        self.table = PageTable(machine.ram, machine.frames, machine.half)
        self.rlimits = {number: DEFAULT_RLIMITS.get(number, UNLIMITED) for number in range(16)}
        self.ipc_lock = True
        self.total_vm = 0
        """Pages of all areas, as RLIMIT_AS counts them."""
        self.data_vm = 0
        """Pages of private writable areas but stacks, as RLIMIT_DATA counts them."""
        self.locked_vm = 0
        """Pages of locked areas, as RLIMIT_MEMLOCK counts them."""
        self.def_flags = 0
        """VM_LOCKED and VM_LOCKONFAULT for new areas, after mlockall(MCL_FUTURE)."""
        self._map = machine.ram.map
        self._words = machine.ram.words
        self._dwords = machine.ram.dwords
        self._readable: dict[int, int] = {}
        """Page number -> frame address of pages found readable: a software TLB for user copies."""
        self._writable: dict[int, int] = {}
        """The same for pages found writable, but those that may hold code."""

    @property
    def root(self) -> int:
        """Guest-physical address of the PML4."""
        return self.table.root

    @property
    def resident(self) -> int:
        """Pages of 4 KiB that have a frame (VmRSS)."""
        return self.table.pages

    def regions(self) -> Iterable[Vma]:
        """All areas in order, as /proc/[pid]/maps lists them."""
        return self.vmas

    def limit(self, resource: int) -> int:
        """The soft limit RLIMIT_* `resource`."""
        return self.rlimits[resource][0]

    # Accounting

    def account(self, flags: int, pages: int) -> None:
        """`pages` (may be negative) of an area with VM_* `flags` came (vm_stat_account())."""
        self.total_vm += pages
        if flags & (VM_WRITE | VM_SHARED | VM_GROWSDOWN) == VM_WRITE:
            self.data_vm += pages
        if flags & VM_LOCKED:
            self.locked_vm += pages

    def add(self, vma: Vma) -> Vma:
        """Put an area where none is; the one that it is part of afterwards."""
        self.account(vma.flags, vma.pages)
        return self.vmas.insert(vma)

    def reflag(self, vma: Vma, flags: int) -> None:
        """Change an area's flags; the caller joins it with its neighbours afterwards."""
        self.account(vma.flags, -vma.pages)
        vma.flags = flags
        self.account(flags, vma.pages)

    def may_expand(self, flags: int, pages: int) -> bool:
        """Do RLIMIT_AS and RLIMIT_DATA allow `pages` more of an area with these flags (may_expand_vm())?"""
        if self.total_vm + pages > self.limit(RLIMIT_AS) >> PAGE_SHIFT:
            return False
        data = flags & (VM_WRITE | VM_SHARED | VM_GROWSDOWN) == VM_WRITE
        return not data or self.data_vm + pages <= self.limit(RLIMIT_DATA) >> PAGE_SHIFT

    def may_lock(self, flags: int, pages: int) -> bool:
        """Does RLIMIT_MEMLOCK allow `pages` more of an area with these flags (mlock_future_ok())?"""
        if not flags & VM_LOCKED or self.ipc_lock:
            return True
        return self.locked_vm + pages <= self.limit(RLIMIT_MEMLOCK) >> PAGE_SHIFT

    # The page table

    def forget_translations(self) -> None:
        """Some page changed its frame or lost a right: drop the software TLBs."""
        self._readable.clear()
        self._writable.clear()

    def split_large(self, start: int, end: int) -> None:
        """See to it that no 2 MiB page crosses an end of the range. Raises OutOfFrames."""
        self.machine.revoke(self.table.split(start))
        self.machine.revoke(self.table.split(end))

    def zap(self, start: int, end: int) -> None:
        """Take all pages of a range out; shared ones keep their contents with their owner. Raises OutOfFrames."""
        self.split_large(start, end)
        self._drop(self.table.clear(start, end))

    def _drop(self, runs: list[Run]) -> None:
        if runs:
            self.forget_translations()
            self.machine.drop(runs)

    def set_rights(self, vma: Vma, start: int, end: int) -> None:
        """Bring the pages of a range, whose 2 MiB pages do not cross its ends, to the rights of their area."""
        flags = PAGE_FLAGS[vma.flags & 7]
        if isinstance(vma.backing, SharedBacking) and vma.backing.tracks_writes:
            flags &= ~WRITE
        runs = self.table.protect(start, end, flags, bool(vma.flags & VM_SHARED))
        if runs:
            self.forget_translations()
            self.machine.revoke(runs)
        if not flags & NX:
            self._writable.clear()
            for pa, count in self.table.runs(start, end):
                self.machine.mark_code(pa, count)

    # What a file that is mapped asks for

    def unmap_backing(self, backing: SharedBacking, first: int, last: int, private: bool) -> None:
        """Take what shows the pages [first, last) of `backing` out; of private mappings copies only if `private`.

        Raises OutOfFrames."""
        for vma, index, start, end in self._parts(backing, first, last):
            if private or vma.flags & VM_SHARED:
                self.zap(start, end)
                continue
            for page in range(start, end, PAGE_SIZE):
                frame = backing.frame(index)
                if frame and self.table.entry(page) & ADDRESS == frame:
                    self.zap(page, page + PAGE_SIZE)
                index += 1

    def write_protect(self, backing: SharedBacking, first: int, last: int) -> None:
        """Have the next write to the pages [first, last) of `backing` through a shared mapping fault."""
        for vma, _, start, end in self._parts(backing, first, last):
            if vma.flags & VM_SHARED:
                runs = self.table.protect(start, end, PAGE_FLAGS[vma.flags & 7] & ~WRITE, True)
                if runs:
                    self.forget_translations()
                    self.machine.revoke(runs)

    def _parts(self, backing: SharedBacking, first: int, last: int) -> Iterator[tuple[Vma, int, int, int]]:
        """(area, page of the backing, start, end) of what maps a range of pages."""
        for vma in list(self.vmas):
            if vma.backing is backing:
                base = vma.offset >> PAGE_SHIFT
                low, high = max(first, base), min(last, base + vma.pages)
                if low < high:
                    start = vma.start + (low - base << PAGE_SHIFT)
                    yield vma, low, start, start + (high - low << PAGE_SHIFT)

    def unmap_range(self, start: int, end: int) -> None:
        """Take areas and pages of a range out. Raises OutOfFrames before anything was changed."""
        self.split_large(start, end)
        gone = self.vmas.remove(start, end)
        for vma in gone:
            self.account(vma.flags, -vma.pages)
        self._drop(self.table.clear(start, end))
        self.vmas.close(gone)

    def teardown(self) -> None:
        """The last task has left: give everything back. May be called again."""
        if not self.table.root:
            return
        self.forget_translations()
        gone = self.vmas.remove(0, TASK_SIZE)
        runs = self.table.clear(0, TASK_SIZE)
        self.machine.retire(runs, self.table.take_tables())
        self.vmas.close(gone)
        self.total_vm = self.data_vm = self.locked_vm = 0
