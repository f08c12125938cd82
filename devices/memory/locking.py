"""mlock and its family (mm/mlock.c). There is no swap: locking makes pages present and counts them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.memory.abi import (
    MAX_MAP_COUNT,
    MCL_CURRENT,
    MCL_FUTURE,
    MCL_ONFAULT,
    MLOCK_ONFAULT,
    RLIMIT_MEMLOCK,
    VM_ACCESS,
    VM_DONTEXPAND,
    VM_IO,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_LOCKONFAULT,
    VM_PFNMAP,
    VM_SHARED,
    VM_WRITE,
)
from devices.memory.mapping import U64, page_align
from vmm.layout import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from vmm.memory.frames import OutOfFrames

if TYPE_CHECKING:
    from devices.memory.space import AddressSpace

NOT_LOCKED = VM_IO | VM_DONTEXPAND | VM_PFNMAP
"""Areas that locking passes by."""


def mlock(space: AddressSpace, address: int, length: int, flags: int) -> None:
    """Lock the pages of a range. man 2 mlock, mlock2."""
    if flags & ~MLOCK_ONFAULT:
        raise SysError(errno.EINVAL, "unknown flags")
    if not space.can_lock():
        raise SysError(errno.EPERM, "RLIMIT_MEMLOCK is 0")
    start, end = _range(address, length)
    pages = (end - start) >> PAGE_SHIFT
    if not space.ipc_lock and space.locked_vm + pages > space.limit(RLIMIT_MEMLOCK) >> PAGE_SHIFT:
        already = sum(
            (min(v.end, end) - max(v.start, start)) >> PAGE_SHIFT
            for v in space.vmas.overlapping(start, end)
            if v.flags & VM_LOCKED
        )
        if space.locked_vm + pages - already > space.limit(RLIMIT_MEMLOCK) >> PAGE_SHIFT:
            raise SysError(errno.ENOMEM, "RLIMIT_MEMLOCK")
    _apply(space, start, end, VM_LOCKED | (VM_LOCKONFAULT if flags & MLOCK_ONFAULT else 0))
    if flags & MLOCK_ONFAULT:
        return
    for vma in space.vmas.overlapping(start, end):
        if not vma.flags & VM_ACCESS:
            raise SysError(errno.ENOMEM, "memory that nobody may access")
        write = vma.flags & (VM_WRITE | VM_SHARED) == VM_WRITE
        try:
            space.populate_part(vma, max(vma.start, start), min(vma.end, end), write)
        except OSError as error:
            raise SysError(errno.ENOMEM, "beyond the end of the file") from error
        except OutOfFrames as error:
            raise SysError(errno.EAGAIN, "no memory") from error


def munlock(space: AddressSpace, address: int, length: int) -> None:
    """man 2 munlock."""
    start, end = _range(address, length)
    _apply(space, start, end, 0)


def _range(address: int, length: int) -> tuple[int, int]:
    """The pages of a byte range, with C's wrap-around."""
    start = address & PAGE_MASK
    size = page_align((length + (address & (PAGE_SIZE - 1))) & U64)
    if start + size > U64:
        raise SysError(errno.EINVAL, "length overflows")
    return start, start + size


def _apply(space: AddressSpace, start: int, end: int, locked: int) -> None:
    """Set VM_LOCKED and VM_LOCKONFAULT of a range up to a hole, which is ENOMEM (apply_vma_lock_flags())."""
    if start == end:
        return
    at = start
    try:
        for vma in space.vmas.overlapping(start, end):
            if vma.start > at:
                break
            stop = min(vma.end, end)
            if vma.flags & VM_LOCKED_MASK != locked and not vma.flags & NOT_LOCKED:
                if space.vmas.splits(at, stop) + len(space.vmas) > MAX_MAP_COUNT:
                    raise SysError(errno.ENOMEM, "vm.max_map_count")
                for part in space.vmas.carve(at, stop):
                    space.reflag(part, part.flags & ~VM_LOCKED_MASK | locked)
            at = stop
    finally:
        space.vmas.rejoin(start, end)
    if at < end:
        raise SysError(errno.ENOMEM, "there is a hole in the range")


def mlockall(space: AddressSpace, flags: int) -> None:
    """man 2 mlockall."""
    if not flags or flags & ~(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) or flags == MCL_ONFAULT:
        raise SysError(errno.EINVAL)
    if not space.can_lock():
        raise SysError(errno.EPERM, "RLIMIT_MEMLOCK is 0")
    if flags & MCL_CURRENT and not space.ipc_lock and space.total_vm > space.limit(RLIMIT_MEMLOCK) >> PAGE_SHIFT:
        raise SysError(errno.ENOMEM, "RLIMIT_MEMLOCK")
    locked = VM_LOCKED | (VM_LOCKONFAULT if flags & MCL_ONFAULT else 0)
    space.def_flags = locked if flags & MCL_FUTURE else 0
    if flags & MCL_CURRENT:
        _lock_all(space, locked)
        for vma in list(space.vmas):
            space.populate(vma.start, vma.end)


def munlockall(space: AddressSpace) -> None:
    """man 2 munlockall."""
    space.def_flags = 0
    _lock_all(space, 0)


def _lock_all(space: AddressSpace, locked: int) -> None:
    for vma in list(space.vmas):
        if not vma.flags & NOT_LOCKED:
            space.reflag(vma, vma.flags & ~VM_LOCKED_MASK | locked)
    space.vmas.rejoin(0, 1 << 47)
