"""madvise, msync and mincore (mm/madvise.c, mm/msync.c, mm/mincore.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.memory import abi
from devices.memory.abi import (
    MS_ASYNC,
    MS_INVALIDATE,
    MS_SYNC,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_HUGEPAGE,
    VM_IO,
    VM_LOCKED,
    VM_MAYWRITE,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_WIPEONFORK,
    VM_WRITE,
)
from devices.memory.backing import SharedBacking
from devices.memory.mapping import page_align
from vmm.layout import PAGE_SHIFT, PAGE_SIZE, TASK_SIZE
from vmm.memory.frames import OutOfFrames

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.memory.space import AddressSpace
    from devices.memory.vma import Vma

    Action = Callable[[AddressSpace, Vma, int, int], None]
    """Gives the advice to a part of one area; SysError when it cannot take it."""

VM_SPECIAL = VM_IO | VM_PFNMAP | abi.VM_DONTEXPAND
FLAG_ADVICE = {
    abi.MADV_NORMAL: (0, VM_RAND_READ | VM_SEQ_READ),
    abi.MADV_RANDOM: (VM_RAND_READ, VM_SEQ_READ),
    abi.MADV_SEQUENTIAL: (VM_SEQ_READ, VM_RAND_READ),
    abi.MADV_DONTFORK: (VM_DONTCOPY, 0),
    abi.MADV_DOFORK: (0, VM_DONTCOPY),
    abi.MADV_WIPEONFORK: (VM_WIPEONFORK, 0),
    abi.MADV_KEEPONFORK: (0, VM_WIPEONFORK),
    abi.MADV_DONTDUMP: (VM_DONTDUMP, 0),
    abi.MADV_DODUMP: (0, VM_DONTDUMP),
    abi.MADV_MERGEABLE: (VM_MERGEABLE, 0),
    abi.MADV_UNMERGEABLE: (0, VM_MERGEABLE),
    abi.MADV_HUGEPAGE: (VM_HUGEPAGE, VM_NOHUGEPAGE),
    abi.MADV_NOHUGEPAGE: (VM_NOHUGEPAGE, VM_HUGEPAGE),
}
"""Advice that only changes an area's flags: (set, clear)."""


def madvise(space: AddressSpace, address: int, length: int, advice: int) -> None:
    """Take MADV_* `advice` for a range; holes in it are ENOMEM after the rest was done. man 2 madvise."""
    action = action_of(advice)
    size = page_align(length)
    if action is None or address & (PAGE_SIZE - 1) or (length and not size) or address + size > 1 << 64:
        raise SysError(errno.EINVAL)
    if not size:
        return
    end = address + size
    if advice in (abi.MADV_POPULATE_READ, abi.MADV_POPULATE_WRITE):
        _populate(space, address, end, advice == abi.MADV_POPULATE_WRITE)
        return
    hole = not space.vmas.covered(address, end)
    for vma in space.vmas.overlapping(address, end):
        action(space, vma, max(vma.start, address), min(vma.end, end))
    if advice in FLAG_ADVICE:
        space.vmas.rejoin(address, end)
    if hole:
        raise SysError(errno.ENOMEM, "there is a hole in the range")


def action_of(advice: int) -> Action | None:
    if advice in FLAG_ADVICE:
        add, remove = FLAG_ADVICE[advice]
        return lambda space, vma, start, end: _flags(space, vma, start, end, advice, add, remove)
    return ACTIONS.get(advice)


def _flags(space: AddressSpace, vma: Vma, start: int, end: int, advice: int, add: int, remove: int) -> None:
    """madvise_vma_behavior()."""
    refused = {
        abi.MADV_DOFORK: vma.flags & VM_IO,
        abi.MADV_WIPEONFORK: vma.backing is not None,
        abi.MADV_DODUMP: vma.flags & VM_SPECIAL,
        abi.MADV_HUGEPAGE: vma.flags & VM_SPECIAL,
        abi.MADV_NOHUGEPAGE: vma.flags & VM_SPECIAL,
    }
    if refused.get(advice):
        raise SysError(errno.EINVAL, "not for this mapping")
    flags = vma.flags & ~remove | add
    if advice == abi.MADV_MERGEABLE and vma.flags & (VM_SPECIAL | VM_SHARED):
        return
    if flags != vma.flags:
        if space.vmas.splits(start, end) + len(space.vmas) > abi.MAX_MAP_COUNT:
            raise SysError(errno.ENOMEM, "vm.max_map_count")
        for part in space.vmas.carve(start, end):
            space.reflag(part, flags)


def _dontneed(space: AddressSpace, vma: Vma, start: int, end: int) -> None:
    if vma.flags & (VM_PFNMAP | VM_LOCKED):
        raise SysError(errno.EINVAL, "locked or special memory")
    space.zap(start, end)


def _dontneed_locked(space: AddressSpace, vma: Vma, start: int, end: int) -> None:
    if vma.flags & VM_PFNMAP:
        raise SysError(errno.EINVAL, "special memory")
    space.zap(start, end)


def _free(space: AddressSpace, vma: Vma, start: int, end: int) -> None:
    """Linux frees the pages when it needs them; here they are freed at once, which it may do as well."""
    if vma.backing is not None:
        raise SysError(errno.EINVAL, "only private anonymous memory can be freed")
    _dontneed(space, vma, start, end)


def _remove(space: AddressSpace, vma: Vma, start: int, end: int) -> None:
    if vma.flags & VM_LOCKED or vma.backing is None:
        raise SysError(errno.EINVAL, "locked, or nothing to punch a hole into")
    if vma.flags & (VM_SHARED | VM_MAYWRITE) != VM_SHARED | VM_MAYWRITE:
        raise SysError(errno.EACCES, "not a shared writable mapping")
    if not isinstance(vma.backing, SharedBacking) or not vma.backing.punch(vma.offset_of(start), end - start):
        raise SysError(errno.EOPNOTSUPP, "the file takes no holes")


def _willneed(space: AddressSpace, vma: Vma, start: int, end: int) -> None:
    """A hint that reading will come: nothing is read ahead."""


def _lru(space: AddressSpace, vma: Vma, start: int, end: int) -> None:
    """MADV_COLD, MADV_PAGEOUT: there is nowhere to page out to."""
    if vma.flags & (VM_LOCKED | VM_PFNMAP):
        raise SysError(errno.EINVAL, "locked or special memory")


def _collapse(space: AddressSpace, vma: Vma, start: int, end: int) -> None:
    raise SysError(errno.EINVAL, "2 MiB pages are not made afterwards")


ACTIONS: dict[int, Action] = {
    abi.MADV_DONTNEED: _dontneed,
    abi.MADV_DONTNEED_LOCKED: _dontneed_locked,
    abi.MADV_FREE: _free,
    abi.MADV_REMOVE: _remove,
    abi.MADV_WILLNEED: _willneed,
    abi.MADV_COLD: _lru,
    abi.MADV_PAGEOUT: _lru,
    abi.MADV_COLLAPSE: _collapse,
    abi.MADV_POPULATE_READ: _willneed,
    abi.MADV_POPULATE_WRITE: _willneed,
}


def _populate(space: AddressSpace, start: int, end: int, write: bool) -> None:
    """madvise_populate()."""
    for vma in space.vmas.overlapping(start, end):
        if vma.start > start:
            break
        if vma.flags & (VM_PFNMAP | VM_IO) or not vma.flags & (VM_WRITE if write else abi.VM_ACCESS):
            raise SysError(errno.EINVAL, "not accessible that way")
        stop = min(vma.end, end)
        try:
            space.populate_part(vma, start, stop, write)
        except OSError as error:
            raise SysError(errno.EFAULT, "beyond the end of the file") from error
        except OutOfFrames as error:
            raise SysError(errno.ENOMEM, "no memory") from error
        start = stop
    if start < end:
        raise SysError(errno.ENOMEM, "there is a hole in the range")


def msync(space: AddressSpace, address: int, length: int, flags: int) -> None:
    """Write changes of shared file mappings to their files. man 2 msync."""
    if flags & ~(MS_ASYNC | MS_INVALIDATE | MS_SYNC) or address & (PAGE_SIZE - 1):
        raise SysError(errno.EINVAL)
    if flags & MS_ASYNC and flags & MS_SYNC:
        raise SysError(errno.EINVAL, "MS_ASYNC and MS_SYNC")
    end = address + page_align(length)
    if end >= 1 << 64:
        raise SysError(errno.ENOMEM, "length overflows")
    hole = not space.vmas.covered(address, end) if end > address else False
    if flags == MS_ASYNC and hole:
        raise SysError(errno.ENOMEM, "there is a hole in the range")
    for vma in space.vmas.overlapping(address, end):
        if flags & MS_INVALIDATE and vma.flags & VM_LOCKED:
            raise SysError(errno.EBUSY, "locked memory")
        if flags & MS_SYNC and vma.flags & VM_SHARED and isinstance(vma.backing, SharedBacking):
            start = max(address, vma.start)
            vma.backing.sync(vma.offset_of(start), min(end, vma.end) - start)
    if hole:
        raise SysError(errno.ENOMEM, "there is a hole in the range")


def mincore(space: AddressSpace, address: int, length: int, vector: int) -> None:
    """Write a byte for each page of a range to `vector`: 1 if it is present. man 2 mincore."""
    if address & (PAGE_SIZE - 1):
        raise SysError(errno.EINVAL, "address not page-aligned")
    if address + length > TASK_SIZE:
        raise SysError(errno.ENOMEM, "beyond the address space")
    end = address + page_align(length)
    pages = (end - address) >> PAGE_SHIFT
    if vector + pages > TASK_SIZE:
        raise SysError(errno.EFAULT, "the vector is beyond the address space")
    while address < end:
        stop = min(end, address + (PAGE_SIZE << PAGE_SHIFT))
        if not space.vmas.covered(address, stop):
            raise SysError(errno.ENOMEM, "there is a hole in the range")
        space.write(vector, bytes(space.table.present(address, stop)))
        vector += (stop - address) >> PAGE_SHIFT
        address = stop
