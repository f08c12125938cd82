"""mmap, munmap, mprotect and brk (mm/mmap.c, mm/vma.c, mm/mprotect.c, arch/x86/mm/mmap.c), and what a new program is
given before its first instruction: stack, heap, [vvar] and [vdso].

Addresses and lengths come from a program and may be anything below 2^64. Errors are SysError with Linux's numbers, in
Linux's order.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.memory import abi
from devices.memory.abi import (
    MAP_32BIT,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NONBLOCK,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_TYPE,
    MAX_MAP_COUNT,
    MMAP_MIN_ADDR,
    RLIM_INFINITY,
    RLIMIT_DATA,
    RLIMIT_MEMLOCK,
    STACK_GUARD_GAP,
    VM_ACCESS,
    VM_ACCOUNT,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_MAYALL,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_NORESERVE,
    VM_SHARED,
    VM_WRITE,
)
from devices.memory.access import UserAccess
from devices.memory.backing import SpecialPages
from devices.memory.filepages import SharedMemory
from devices.memory.vma import Vma
from vmm.layout import LARGE_SIZE, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, TASK_SIZE
from vmm.memory.frames import OutOfFrames

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.memory.backing import Backing, MappableFile, SharedBacking
    from devices.memory.machine import MachineMemory

    Mapped = Backing | SharedBacking | None

U64 = 0xFFFF_FFFF_FFFF_FFFF
LONGEST_FILE = (1 << 63) - 1

STACK_RANDOM_PAGES = 0x40_0000
MMAP_RANDOM_PAGES = 1 << 28
"""Of mmap_base and of a stack's top (vm.mmap_rnd_bits, STACK_RND_MASK)."""
STACK_FIRST_SIZE = (128 << 10) + PAGE_SIZE
"""Bytes of a new stack's area (setup_arg_pages() adds 128 KiB)."""
GAP_MIN, GAP_MAX = 128 << 20, TASK_SIZE // 6 * 5
LOW_START, LOW_END = 0x4000_0000, 0x8000_0000
"""Where MAP_32BIT mappings go."""


def page_align(size: int) -> int:
    """Up to a whole page, with C's wrap-around: sizes within a page of 2^64 become 0."""
    return (size + PAGE_SIZE - 1) & PAGE_MASK & U64


class Mappings(UserAccess):
    """The part of an address space that maps and unmaps."""

    def __init__(self, machine: MachineMemory) -> None:
        super().__init__(machine)
        self.brk_start = self.brk_end = 0
        self.program_data = 0
        """Bytes of the program's own data segment, which RLIMIT_DATA counts with the heap."""
        self.stack_top = TASK_SIZE
        self.mmap_base = 0
        self._set_mmap_base(self.limit(abi.RLIMIT_STACK))
        self._no_gap = (1, self.mmap_base)
        """(length, address): above `address` and below mmap_base there is no gap of `length` or more."""

    # A new program's memory

    def _set_mmap_base(self, stack_limit: int) -> None:
        gap = min(max(stack_limit + STACK_RANDOM_PAGES * PAGE_SIZE + STACK_GUARD_GAP, GAP_MIN), GAP_MAX)
        pages = self.machine.random.below(MMAP_RANDOM_PAGES)
        self.mmap_base = (TASK_SIZE - gap - pages * PAGE_SIZE) & PAGE_MASK
        self._no_gap = (1, self.mmap_base)

    def map_stack(self, limit: int, executable: bool = False) -> int:
        """Map the first stack, which grows to `limit` bytes (RLIMIT_STACK) at most; its top. Lays out what is below."""
        self._set_mmap_base(limit)
        self.stack_top = TASK_SIZE - self.machine.random.below(STACK_RANDOM_PAGES) * PAGE_SIZE
        flags = abi.VM_DATA | VM_GROWSDOWN | (abi.VM_EXEC if executable else 0)
        size = max(PAGE_SIZE, min(STACK_FIRST_SIZE, limit & PAGE_MASK))
        self.add(Vma(self.stack_top - size, self.stack_top, flags))
        return self.stack_top

    def set_brk_start(self, address: int, program_data: int = 0) -> None:
        """Where the heap begins; `program_data` is the size of the program's data segment in bytes."""
        self.brk_start = self.brk_end = address
        self.program_data = program_data

    def install_special(self, *pages: SpecialPages) -> int:
        """Map the machine's own pages ([vvar], [vdso]) one behind the other, read-only, `executable` ones for running;
        the first one's address. A program may unmap them. SysError(ENOMEM)."""
        address = self.unmapped_area(0, sum(p.size for p in pages), 0)
        at = address
        for special in pages:
            vma = Vma(at, at + special.size, special.vm_flags, special)
            self.add(vma)
            self._fill(vma, vma.start, vma.end)
            at = vma.end
        return address

    # mmap

    def mmap(
        self,
        address: int,
        length: int,
        prot: int,
        flags: int,
        backing: Mapped = None,
        offset: int = 0,
        *,
        may: int = VM_MAYALL,
        check: Callable[[], tuple[Mapped, int]] | None = None,
        file: MappableFile | None = None,
    ) -> int:
        """Map `length` bytes with PROT_* `prot` and MAP_* `flags`; the address. man 2 mmap, do_mmap().

        A file's `backing` and what the mapping may ever be allowed (VM_MAY*) are given, or come from `check`, which is
        called when Linux looks at the file: after the address was found. `offset` in bytes is page-aligned. `file` is
        kept open for as long as it is mapped."""
        if not length:
            raise SysError(errno.EINVAL, "length 0")
        if flags & MAP_FIXED_NOREPLACE:
            flags |= MAP_FIXED
        length = page_align(length)
        if not length:
            raise SysError(errno.ENOMEM, "length overflows")
        if offset + length > U64:
            raise SysError(errno.EOVERFLOW, "offset overflows")
        if len(self.vmas) > MAX_MAP_COUNT:
            raise SysError(errno.ENOMEM, "vm.max_map_count")
        vm_flags = prot & VM_ACCESS | VM_MAYALL | self.def_flags
        vm_flags |= (VM_GROWSDOWN if flags & MAP_GROWSDOWN else 0) | (VM_LOCKED if flags & MAP_LOCKED else 0)
        start = self.unmapped_area(address, length, flags)
        if flags & MAP_FIXED_NOREPLACE and self.vmas.overlapping(start, start + length):
            raise SysError(errno.EEXIST, "something is mapped there")
        if flags & MAP_LOCKED and not self.can_lock():
            raise SysError(errno.EPERM, "RLIMIT_MEMLOCK is 0")
        if not self.may_lock(vm_flags, length >> PAGE_SHIFT):
            raise SysError(errno.EAGAIN, "RLIMIT_MEMLOCK")
        self._check_type(flags, length, offset)
        if check is not None:
            backing, may = check()
        vm_flags = self._typed_flags(vm_flags & ~VM_MAYALL | may, flags, backing)
        if backing is None and vm_flags & VM_SHARED:
            backing, offset = SharedMemory(self.machine, length), 0
        self._map_region(Vma(start, start + length, vm_flags, backing, offset, file))
        if vm_flags & VM_LOCKED or flags & (MAP_POPULATE | MAP_NONBLOCK) == MAP_POPULATE:
            self.populate(start, start + length)
        return start

    @staticmethod
    def _check_type(flags: int, length: int, offset: int) -> None:
        kind = flags & MAP_TYPE
        if not flags & MAP_ANONYMOUS:
            if offset + length > LONGEST_FILE:
                raise SysError(errno.EOVERFLOW, "beyond the longest file")
            if kind == MAP_SHARED_VALIDATE:
                if flags & ~abi.LEGACY_MAP_MASK:
                    raise SysError(errno.EOPNOTSUPP, "unknown flags")
                return
        if kind not in (MAP_SHARED, MAP_PRIVATE):
            raise SysError(errno.EINVAL, "neither private nor shared")

    @staticmethod
    def _typed_flags(vm_flags: int, flags: int, backing: Mapped) -> int:
        """VM_* with what MAP_SHARED and its like add. A file that is not open for writing is shared in name only."""
        if flags & MAP_TYPE != MAP_PRIVATE:
            vm_flags |= VM_MAYSHARE | (VM_SHARED if vm_flags & VM_MAYWRITE else 0)
        if vm_flags & VM_GROWSDOWN and (backing is not None or vm_flags & VM_MAYSHARE):
            raise SysError(errno.EINVAL, "only private anonymous memory grows")
        return vm_flags | (VM_NORESERVE if flags & MAP_NORESERVE else 0)

    def _map_region(self, vma: Vma) -> None:
        """Put an area in place of what is there, if the limits allow (mmap_region())."""
        if not self.may_expand(vma.flags, vma.pages):
            there = sum(
                (min(v.end, vma.end) - max(v.start, vma.start)) >> PAGE_SHIFT
                for v in self.vmas.overlapping(vma.start, vma.end)
            )
            if not self.may_expand(vma.flags, vma.pages - there):
                raise SysError(errno.ENOMEM, "RLIMIT_AS or RLIMIT_DATA")
        accounted = (vma.backing is None and vma.flags & VM_WRITE) or isinstance(vma.backing, SharedMemory)
        if accounted and not vma.flags & VM_NORESERVE:
            self.charge(vma.pages)
            vma.flags |= 0 if vma.backing is not None else VM_ACCOUNT
        self._unmap(vma.start, vma.end)
        self.add(vma)

    def charge(self, pages: int) -> None:
        """Refuse what can never be had (vm.overcommit_memory 0)."""
        if pages > self.machine.total:
            raise SysError(errno.ENOMEM, "more than all memory of the machine")

    def can_lock(self) -> bool:
        """May the process lock memory at all (can_do_mlock())?"""
        return self.ipc_lock or self.limit(RLIMIT_MEMLOCK) != 0

    # Where

    def unmapped_area(self, address: int, length: int, flags: int) -> int:
        """Where a mapping of `length` bytes goes, given the address asked for (get_unmapped_area())."""
        if length > TASK_SIZE:
            raise SysError(errno.ENOMEM, "larger than the address space")
        if flags & MAP_FIXED:
            start = address
        else:
            hint = address & PAGE_MASK
            start = self._find_area(max(hint, MMAP_MIN_ADDR) if hint else 0, length, flags)
        if start < 0 or start > TASK_SIZE - length:
            raise SysError(errno.ENOMEM, "no room in the address space")
        if start & (PAGE_SIZE - 1):
            raise SysError(errno.EINVAL, "address not page-aligned")
        if start < MMAP_MIN_ADDR:
            raise SysError(errno.EPERM, "below vm.mmap_min_addr")
        return start

    def _find_area(self, hint: int, length: int, flags: int) -> int:
        low = flags & MAP_32BIT
        end = LOW_END if low else TASK_SIZE
        if hint and hint <= end - length:
            above, below = self.vmas.find(hint), self.vmas.before(hint + 1)
            free_above = above is None or hint + length <= above.gap_start
            if free_above and (below is None or below.end <= hint):
                return hint
        if low:
            return self.vmas.gap_above(length, LOW_START, LOW_END)
        known, top = self._no_gap
        high = top if length >= known else self.mmap_base
        if flags & MAP_ANONYMOUS and not hint and not length % LARGE_SIZE:
            start = self.vmas.gap_below(length + LARGE_SIZE, MMAP_MIN_ADDR, high)
            if start >= 0:
                return start + LARGE_SIZE - start % LARGE_SIZE
        start = self.vmas.gap_below(length, MMAP_MIN_ADDR, high)
        if start < 0:
            return self.vmas.gap_above(length, TASK_SIZE // 3 & PAGE_MASK, TASK_SIZE)
        self._no_gap = (length, start + length)
        return start

    # munmap

    def munmap(self, address: int, length: int) -> None:
        """Unmap the pages of [address, address + length); holes in it are no error. man 2 munmap."""
        size = page_align(length)
        if address & (PAGE_SIZE - 1) or address > TASK_SIZE or length > TASK_SIZE - address or not size:
            raise SysError(errno.EINVAL, "no range of pages")
        if self.vmas.splits(address, address + size) == 2 and len(self.vmas) >= MAX_MAP_COUNT:
            raise SysError(errno.ENOMEM, "vm.max_map_count")
        self._unmap(address, address + size)

    def _unmap(self, start: int, end: int) -> None:
        if self.vmas.overlapping(start, end):
            self.unmap_range(start, end)
            if end >= self._no_gap[1]:
                self._no_gap = (1, self.mmap_base)

    # mprotect

    def mprotect(self, address: int, length: int, prot: int) -> None:
        """Change what the pages of a range may be used for. man 2 mprotect.

        A range that runs into a hole, or into an area that may not have `prot`, fails there, the rest being done."""
        grows = prot & (abi.PROT_GROWSDOWN | abi.PROT_GROWSUP)
        prot &= ~(abi.PROT_GROWSDOWN | abi.PROT_GROWSUP)
        if grows == abi.PROT_GROWSDOWN | abi.PROT_GROWSUP or address & (PAGE_SIZE - 1):
            raise SysError(errno.EINVAL)
        if not length:
            return
        end = address + page_align(length)
        if end <= address or end > U64:
            raise SysError(errno.ENOMEM, "length overflows")
        if prot & ~(VM_ACCESS | abi.PROT_SEM):
            raise SysError(errno.EINVAL, "unknown protection")
        first = self.vmas.find(address)
        if first is None or first.start >= end:
            raise SysError(errno.ENOMEM, "nothing is mapped there")
        if grows & abi.PROT_GROWSDOWN:
            address = first.start
            if not first.flags & VM_GROWSDOWN:
                raise SysError(errno.EINVAL, "no stack")
        elif first.start > address:
            raise SysError(errno.ENOMEM, "begins in a hole")
        elif grows:
            raise SysError(errno.EINVAL, "nothing grows up")
        self._protect(address, end, prot & VM_ACCESS)

    def _protect(self, start: int, end: int, prot: int) -> None:
        first = start
        try:
            for vma in self.vmas.overlapping(start, end):
                if vma.start > start:
                    break
                stop = min(vma.end, end)
                self._protect_part(vma, start, stop, prot)
                start = stop
        finally:
            self.vmas.rejoin(first, end)
        if start < end:
            raise SysError(errno.ENOMEM, "runs into a hole")

    def _protect_part(self, vma: Vma, start: int, end: int, prot: int) -> None:
        """Change a part of one area (mprotect_fixup())."""
        flags = vma.flags & ~VM_ACCESS | prot
        if flags & VM_ACCESS & ~(flags >> 4):
            raise SysError(errno.EACCES, "not what the file may be mapped for")
        if flags == vma.flags:
            return
        pages = (end - start) >> PAGE_SHIFT
        if flags & VM_WRITE and not vma.flags & VM_WRITE:
            if not self.may_expand(flags, pages) and self.may_expand(vma.flags, pages):
                raise SysError(errno.ENOMEM, "RLIMIT_DATA")
            if not flags & (VM_ACCOUNT | VM_SHARED | VM_NORESERVE):
                self.charge(pages)
                flags |= VM_ACCOUNT
        if (start > vma.start) + (end < vma.end) + len(self.vmas) > MAX_MAP_COUNT:
            raise SysError(errno.ENOMEM, "vm.max_map_count")
        self.split_large(start, end)
        for part in self.vmas.carve(start, end):
            self.reflag(part, flags)
            self.set_rights(part, start, end)

    # brk

    def brk(self, address: int) -> int:
        """Move the end of the heap; where it is afterwards, which is where it was if it cannot. man 2 brk."""
        if not self.brk_start <= address <= TASK_SIZE:
            return self.brk_end
        limit = self.limit(RLIMIT_DATA)
        if limit < RLIM_INFINITY and address - self.brk_start + self.program_data > limit:
            return self.brk_end
        old, new = page_align(self.brk_end), page_align(address)
        try:
            if new < old:
                heap = self.vmas.find(new)
                if heap is None or heap.start >= old:
                    return self.brk_end
                self._unmap(new, old)
            elif new > old:
                self._extend_heap(old, new)
        except (SysError, OutOfFrames):
            return self.brk_end
        self.brk_end = address
        return address

    def _extend_heap(self, old: int, new: int) -> None:
        flags = abi.VM_DATA | self.def_flags
        self.unmapped_area(old, new - old, MAP_FIXED)
        if not self.may_lock(flags, (new - old) >> PAGE_SHIFT):
            raise SysError(errno.EAGAIN, "RLIMIT_MEMLOCK")
        above = self.vmas.find(old)
        if above is not None and new + PAGE_SIZE > above.gap_start:
            raise SysError(errno.ENOMEM, "something is mapped there")
        vma = Vma(old, new, flags)
        if not self.may_expand(flags, vma.pages) or len(self.vmas) > MAX_MAP_COUNT:
            raise SysError(errno.ENOMEM, "a limit")
        self.charge(vma.pages)
        self.add(vma)
        if flags & VM_LOCKED:
            self.populate(old, new)

    # Having pages at once

    def populate(self, start: int, end: int) -> None:
        """Make the pages of a range present as far as that goes (mm_populate(), whose errors mmap ignores)."""
        for vma in self.vmas.overlapping(start, end):
            if vma.flags & VM_LOCKONFAULT:
                continue
            try:
                self.populate_part(vma, max(start, vma.start), min(end, vma.end), bool(vma.flags & VM_WRITE))
            except (OutOfFrames, OSError):
                return

    def populate_part(self, vma: Vma, start: int, end: int, write: bool) -> None:
        """Make pages of one area present, to be written or only read. Raises OutOfFrames, and OSError(EFAULT) where the
        backing has none; does nothing in an area that nobody may access."""
        if not vma.flags & VM_ACCESS:
            return
        while start < end:
            done = sum(n for _, n in self.table.extents(start, end, write))
            start += done
            if start < end and not self._serve(vma, start, write, (start, end)):
                raise OSError(errno.EFAULT, "beyond the end of the file")
