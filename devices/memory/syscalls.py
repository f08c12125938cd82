"""The memory calls: decode, and let the model do it.

man 2 mmap, munmap, mprotect, mremap, brk, madvise, msync, mincore, mlock, mlockall.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from devices.args import Fd, Ptr, Size, ULong
from devices.bus import syscall
from devices.errors import SysError
from devices.memory.abi import (
    MAP_ANONYMOUS,
    MAP_HUGE_MASK,
    MAP_HUGE_SHIFT,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_TYPE,
    PROT_EXEC,
    PROT_WRITE,
    VM_MAYALL,
    VM_MAYEXEC,
    VM_MAYWRITE,
    Advice,
    MapFlags,
    Mlock2Flags,
    MlockallFlags,
    MremapFlags,
    MsyncFlags,
    ProtFlags,
)
from devices.memory.backing import SharedBacking
from devices.vfs.abi import O_ACCMODE, O_PATH, O_RDWR, O_WRONLY
from devices.vfs.inode import SB_NOEXEC
from vmm.layout import PAGE_SIZE
from vmm.memory.frames import OutOfFrames

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.task.task import Task
    from devices.vfs.files import OpenFile

HUGE_PAGE_LOGS = (0, 21, 30)
"""Sizes of huge pages that x86-64 has, as MAP_HUGE_* encodes them."""


def no_memory(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call the model; that no frame is left is ENOMEM."""
    try:
        return call(*arguments, **named)
    except OutOfFrames:
        raise SysError(errno.ENOMEM, "the machine's memory is used up") from None


@syscall("mmap")
def mmap(task: Task, addr: Ptr, length: Size, prot: ProtFlags, flags: MapFlags, fd: Fd, offset: ULong) -> int:
    if offset & (PAGE_SIZE - 1):
        raise SysError(errno.EINVAL, "offset not page-aligned")
    memory = task.memory
    if not flags & MAP_ANONYMOUS:
        file = task.files.get(fd)
        if file.flags & O_PATH:
            raise SysError(errno.EBADF, "O_PATH")
        if flags & MAP_HUGETLB:
            raise SysError(errno.EINVAL, "no file of huge pages")

        def check() -> tuple[Any, int]:
            return check_file(task, file, prot, flags, offset, length)

        return int(no_memory(memory.mmap, addr, length, prot, flags, None, offset, check=check, file=file))
    if flags & MAP_HUGETLB:
        known = flags >> MAP_HUGE_SHIFT & MAP_HUGE_MASK in HUGE_PAGE_LOGS
        raise SysError(errno.ENOMEM if known else errno.EINVAL, "no huge pages are reserved")
    return int(no_memory(memory.mmap, addr, length, prot, flags))


def check_file(task: Task, file: OpenFile, prot: int, flags: int, offset: int, length: int) -> tuple[Any, int]:
    """What a mapping of `file` shows, and VM_MAY* (the file part of do_mmap())."""
    may = VM_MAYALL
    mode = file.flags & O_ACCMODE
    if flags & MAP_TYPE != MAP_PRIVATE and mode != O_RDWR:
        if prot & PROT_WRITE:
            raise SysError(errno.EACCES, "shared and writable, of a file that is not")
        may &= ~VM_MAYWRITE
    if mode == O_WRONLY:
        raise SysError(errno.EACCES, "not open for reading")
    if file.path is not None and (file.path.mount.flags | file.path.mount.sb.flags) & SB_NOEXEC:
        if prot & PROT_EXEC:
            raise SysError(errno.EPERM, "noexec")
        may &= ~VM_MAYEXEC
    backing = file.mmap_backing(task, prot, flags, offset, length)
    if flags & MAP_TYPE != MAP_PRIVATE and isinstance(backing, SharedBacking) and backing.write_sealed:
        may &= ~VM_MAYWRITE
    return backing, may


@syscall("munmap")
def munmap(task: Task, addr: Ptr, length: Size) -> int:
    no_memory(task.memory.munmap, addr, length)
    return 0


@syscall("mprotect")
def mprotect(task: Task, addr: Ptr, length: Size, prot: ProtFlags) -> int:
    no_memory(task.memory.mprotect, addr, length, prot)
    return 0


@syscall("mremap")
def mremap(task: Task, old_address: Ptr, old_size: Size, new_size: Size, flags: MremapFlags, new_address: Ptr) -> int:
    from devices.memory import remap

    return int(no_memory(remap.mremap, task.memory, old_address, old_size, new_size, flags, new_address))


@syscall("brk")
def brk(task: Task, addr: Ptr) -> int:
    return task.memory.brk(addr)


@syscall("madvise")
def madvise(task: Task, addr: Ptr, length: Size, advice: Advice) -> int:
    from devices.memory import advice as model

    no_memory(model.madvise, task.memory, addr, length, advice)
    return 0


@syscall("msync")
def msync(task: Task, addr: Ptr, length: Size, flags: MsyncFlags) -> int:
    from devices.memory import advice

    advice.msync(task.memory, addr, length, flags)
    return 0


@syscall("mincore")
def mincore(task: Task, addr: Ptr, length: Size, vec: Ptr) -> int:
    from devices.memory import advice

    advice.mincore(task.memory, addr, length, vec)
    return 0


@syscall("mlock")
def mlock(task: Task, addr: Ptr, len: Size) -> int:
    from devices.memory import locking

    locking.mlock(task.memory, addr, len, 0)
    return 0


@syscall("mlock2")
def mlock2(task: Task, addr: Ptr, len: Size, flags: Mlock2Flags) -> int:
    from devices.memory import locking

    locking.mlock(task.memory, addr, len, flags)
    return 0


@syscall("munlock")
def munlock(task: Task, addr: Ptr, len: Size) -> int:
    from devices.memory import locking

    locking.munlock(task.memory, addr, len)
    return 0


@syscall("mlockall")
def mlockall(task: Task, flags: MlockallFlags) -> int:
    from devices.memory import locking

    locking.mlockall(task.memory, flags)
    return 0


@syscall("munlockall")
def munlockall(task: Task) -> int:
    from devices.memory import locking

    locking.munlockall(task.memory)
    return 0
