"""Constants of <asm-generic/mman-common.h>, <linux/mman.h> and <asm/mman.h>, VM_* of include/linux/mm.h; their types.

Names and values are the kernel's.
"""

from __future__ import annotations

from typing import Annotated

from devices.args import EnumSet, FlagSet

PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC, PROT_SEM = 0, 1, 2, 4, 8
PROT_GROWSDOWN, PROT_GROWSUP = 0x0100_0000, 0x0200_0000

MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE, MAP_DROPPABLE = 1, 2, 3, 8
MAP_TYPE = 0x0F
MAP_FIXED, MAP_ANONYMOUS, MAP_32BIT, MAP_ABOVE4G = 0x10, 0x20, 0x40, 0x80
MAP_GROWSDOWN, MAP_DENYWRITE, MAP_EXECUTABLE, MAP_LOCKED = 0x100, 0x800, 0x1000, 0x2000
MAP_NORESERVE, MAP_POPULATE, MAP_NONBLOCK, MAP_STACK = 0x4000, 0x8000, 0x1_0000, 0x2_0000
MAP_HUGETLB, MAP_SYNC, MAP_FIXED_NOREPLACE = 0x4_0000, 0x8_0000, 0x10_0000
MAP_UNINITIALIZED = 0x400_0000
MAP_HUGE_SHIFT, MAP_HUGE_MASK = 26, 0x3F
LEGACY_MAP_MASK = (
    MAP_SHARED | MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_DENYWRITE | MAP_EXECUTABLE | MAP_UNINITIALIZED
    | MAP_GROWSDOWN | MAP_LOCKED | MAP_NORESERVE | MAP_POPULATE | MAP_NONBLOCK | MAP_STACK | MAP_HUGETLB | MAP_32BIT
    | MAP_ABOVE4G | MAP_HUGE_MASK << MAP_HUGE_SHIFT
)  # fmt: skip
"""Flags that MAP_SHARED_VALIDATE takes (MAP_SYNC only where the file has it, and none here has)."""

MREMAP_MAYMOVE, MREMAP_FIXED, MREMAP_DONTUNMAP = 1, 2, 4
MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
MLOCK_ONFAULT = 1

MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED = 0, 1, 2, 3, 4
MADV_FREE, MADV_REMOVE, MADV_DONTFORK, MADV_DOFORK = 8, 9, 10, 11
MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 12, 13, 14, 15
MADV_DONTDUMP, MADV_DODUMP, MADV_WIPEONFORK, MADV_KEEPONFORK = 16, 17, 18, 19
MADV_COLD, MADV_PAGEOUT, MADV_POPULATE_READ, MADV_POPULATE_WRITE = 20, 21, 22, 23
MADV_DONTNEED_LOCKED, MADV_COLLAPSE = 24, 25

VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 1, 2, 4, 8
VM_MAYREAD, VM_MAYWRITE, VM_MAYEXEC, VM_MAYSHARE = 0x10, 0x20, 0x40, 0x80
VM_GROWSDOWN, VM_PFNMAP, VM_LOCKED, VM_IO = 0x100, 0x400, 0x2000, 0x4000
VM_SEQ_READ, VM_RAND_READ, VM_DONTCOPY, VM_DONTEXPAND = 0x8000, 0x1_0000, 0x2_0000, 0x4_0000
VM_LOCKONFAULT, VM_ACCOUNT, VM_NORESERVE = 0x8_0000, 0x10_0000, 0x20_0000
VM_WIPEONFORK, VM_DONTDUMP = 0x200_0000, 0x400_0000
VM_HUGEPAGE, VM_NOHUGEPAGE, VM_MERGEABLE = 0x2000_0000, 0x4000_0000, 0x8000_0000
VM_ACCESS = VM_READ | VM_WRITE | VM_EXEC
VM_MAYALL = VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
VM_LOCKED_MASK = VM_LOCKED | VM_LOCKONFAULT
VM_DATA = VM_READ | VM_WRITE | VM_MAYALL | VM_ACCOUNT
"""A private, writable mapping: the heap, and with VM_GROWSDOWN the stack."""

RLIMIT_DATA, RLIMIT_STACK, RLIMIT_MEMLOCK, RLIMIT_AS = 2, 3, 8, 9
RLIM_INFINITY = 0xFFFF_FFFF_FFFF_FFFF

SIGBUS, SIGSEGV = 7, 11
SEGV_MAPERR, SEGV_ACCERR = 1, 2
BUS_ADRERR = 2

MMAP_MIN_ADDR = 65536
"""vm.mmap_min_addr: no program maps below it."""
MAX_MAP_COUNT = 65530
"""vm.max_map_count."""
STACK_GUARD_GAP = 256 << 12
"""Bytes kept free below a stack that grows (stack_guard_gap)."""


def _named(prefix: str) -> dict[str, int]:
    return {name: value for name, value in globals().items() if name.startswith(prefix)}


_MAP_TYPES = {"MAP_SHARED": MAP_SHARED, "MAP_PRIVATE": MAP_PRIVATE, "MAP_SHARED_VALIDATE": MAP_SHARED_VALIDATE}


ProtFlags = Annotated[int, FlagSet(_named("PROT_"), code="{r}")]
MapFlags = Annotated[
    int,
    FlagSet(
        {
            name: value
            for name, value in _named("MAP_").items()
            if value > MAP_TYPE and not name.startswith("MAP_HUGE_")
        },
        code="{r}",
        enum=MAP_TYPE,
        values=_MAP_TYPES,
    ),
]
MremapFlags = Annotated[int, FlagSet(_named("MREMAP_"), code="{r}")]
MsyncFlags = Annotated[int, FlagSet(_named("MS_"))]
MlockallFlags = Annotated[int, FlagSet(_named("MCL_"))]
Mlock2Flags = Annotated[int, FlagSet(_named("MLOCK_"))]
Advice = Annotated[int, EnumSet(_named("MADV_"))]
