"""mremap (mm/mremap.c): resize a mapping, in place or by moving its pages."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.memory.abi import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAX_MAP_COUNT,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    VM_ACCOUNT,
    VM_DONTEXPAND,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MAYSHARE,
    VM_PFNMAP,
)
from devices.memory.mapping import LONGEST_FILE, page_align
from devices.memory.vma import Vma
from vmm.layout import LARGE_SIZE, PAGE_SHIFT, PAGE_SIZE, TASK_SIZE

if TYPE_CHECKING:
    from devices.memory.space import AddressSpace


def mremap(space: AddressSpace, address: int, old_length: int, new_length: int, flags: int, target: int) -> int:
    """Give the mapping at `address` another size or place; its address then. man 2 mremap.

    Raises SysError, and OutOfFrames before anything was moved."""
    if flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP):
        raise SysError(errno.EINVAL, "unknown flags")
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP) and not flags & MREMAP_MAYMOVE:
        raise SysError(errno.EINVAL, "needs MREMAP_MAYMOVE")
    if flags & MREMAP_DONTUNMAP and old_length != new_length:
        raise SysError(errno.EINVAL, "MREMAP_DONTUNMAP does not resize")
    if address & (PAGE_SIZE - 1):
        raise SysError(errno.EINVAL, "address not page-aligned")
    old, new = page_align(old_length), page_align(new_length)
    if not new or new > TASK_SIZE:
        raise SysError(errno.EINVAL, "new size 0 or larger than the address space")
    vma = space.vmas.at(address)
    if vma is None:
        raise SysError(errno.EFAULT, "nothing is mapped there")
    if flags & (MREMAP_FIXED | MREMAP_DONTUNMAP):
        return _remap_to(space, address, old, new, flags, target)
    if old >= new:
        if old > new:
            space.munmap(address + new, old - new)
        return address
    check_resize(space, vma, address, old, new)
    if old == vma.end - address and _extend(space, vma, address, old, new):
        return address
    if not flags & MREMAP_MAYMOVE:
        raise SysError(errno.ENOMEM, "no room to grow in place")
    place = space.unmapped_area(0, new, 0 if vma.backing is not None else MAP_ANONYMOUS)
    return _move(space, vma, address, old, new, place, flags)


def _remap_to(space: AddressSpace, address: int, old: int, new: int, flags: int, target: int) -> int:
    """The forms that always move (mremap_to())."""
    if target & (PAGE_SIZE - 1) or new > TASK_SIZE or target > TASK_SIZE - new:
        raise SysError(errno.EINVAL, "no place for it")
    if address + old > target and target + new > address:
        raise SysError(errno.EINVAL, "old and new place overlap")
    if len(space.vmas) + 2 >= MAX_MAP_COUNT - 3:
        raise SysError(errno.ENOMEM, "vm.max_map_count")
    if flags & MREMAP_FIXED:
        space.unmapped_area(target, new, MAP_FIXED)
        space.munmap(target, new)
    if old > new:
        space.munmap(address + new, old - new)
        old = new
    vma = space.vmas.at(address)
    if vma is None:
        raise SysError(errno.EFAULT, "nothing is mapped there")
    check_resize(space, vma, address, old, new)
    if flags & MREMAP_DONTUNMAP and not space.may_expand(vma.flags, old >> PAGE_SHIFT):
        raise SysError(errno.ENOMEM, "RLIMIT_AS or RLIMIT_DATA")
    if not flags & MREMAP_FIXED:
        target = space.unmapped_area(target, new, 0)
    return _move(space, vma, address, old, new, target, flags)


def check_resize(space: AddressSpace, vma: Vma, address: int, old: int, new: int) -> None:
    """May [address, address + old) of an area become `new` bytes (vma_to_resize())?"""
    if not old and not vma.flags & VM_MAYSHARE:
        raise SysError(errno.EINVAL, "only shared memory can be mapped once more")
    if old > vma.end - address:
        raise SysError(errno.EFAULT, "crosses the end of the mapping")
    if new == old:
        return
    if vma.backing is not None and vma.offset_of(address) + new > LONGEST_FILE:
        raise SysError(errno.EINVAL, "offset overflows")
    if vma.flags & (VM_DONTEXPAND | VM_PFNMAP):
        raise SysError(errno.EFAULT, "cannot be resized")
    more = (new - old) >> PAGE_SHIFT
    if not space.may_lock(vma.flags, more):
        raise SysError(errno.EAGAIN, "RLIMIT_MEMLOCK")
    if not space.may_expand(vma.flags, more):
        raise SysError(errno.ENOMEM, "RLIMIT_AS or RLIMIT_DATA")


def _extend(space: AddressSpace, vma: Vma, address: int, old: int, new: int) -> bool:
    """Let an area that ends with the old range grow in place, if what follows is free."""
    end = address + new
    above = space.vmas.find(vma.end)
    if end > TASK_SIZE or (above is not None and above.start < end):
        return False
    if vma.flags & VM_ACCOUNT:
        space.charge((new - old) >> PAGE_SHIFT)
    flags, start = vma.flags, vma.end
    offset = vma.offset_of(start) if vma.backing is not None else 0
    space.add(Vma(start, end, flags, vma.backing, offset, vma.file))
    if flags & VM_LOCKED:
        space.populate(start, end)
    return True


def _move(space: AddressSpace, vma: Vma, address: int, old: int, new: int, target: int, flags: int) -> int:
    """Move pages and area; with MREMAP_DONTUNMAP, or an old size of 0, the old area stays (move_vma())."""
    if len(space.vmas) >= MAX_MAP_COUNT - 3:
        raise SysError(errno.ENOMEM, "vm.max_map_count")
    if vma.flags & VM_ACCOUNT and new > old:
        space.charge((new - old) >> PAGE_SHIFT)
    offset = vma.offset_of(address) if vma.backing is not None else 0
    moved = Vma(target, target + new, vma.flags, vma.backing, offset, vma.file)
    if old:
        _move_pages(space, address, old, target)
    space.add(moved)
    if old and flags & MREMAP_DONTUNMAP:
        for part in space.vmas.carve(address, address + old):
            space.reflag(part, part.flags & ~VM_LOCKED_MASK)
        space.vmas.rejoin(address, address + old)
    elif old:
        space.munmap(address, old)
    if moved.flags & VM_LOCKED:
        space.populate(target, target + new)
    return target


def _move_pages(space: AddressSpace, address: int, size: int, target: int) -> None:
    """Move the page table entries of a range; 2 MiB pages only as they are."""
    if (address ^ target) & (LARGE_SIZE - 1):
        space.machine.revoke(space.table.split_range(address, address + size))
    else:
        space.split_large(address, address + size)
    runs = space.table.move(address, address + size, target)
    if runs:
        space.forget_translations()
        space.machine.revoke(runs)
