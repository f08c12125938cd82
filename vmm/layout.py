"""Where the monitor's own pages lie in every guest address space.

All of them are in the upper half (PML4 slots 256-511), which Linux gives no program either, so a guest's own half is
exactly Linux's: no mmap can land here, no mapping can cover it and user copies refuse it. What a guest can read of it
is code that any program may know; it holds no secret and decides nothing.
"""

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = -PAGE_SIZE
LARGE_SIZE = 2 << 20
"""Size in bytes of a 2 MiB page."""

TASK_SIZE = 0x7FFF_FFFF_F000
"""End of the guest program's half (TASK_SIZE_MAX of arch/x86/include/asm/page_64_types.h)."""

STUB = 0xFFFF_FFFF_FF5F_E000
"""The system call stub (MSR_LSTAR): user-accessible, read-only, executable."""
DOORBELL = 0xFFFF_FFFF_FF5F_D000
"""User-accessible, writable, not executable, with no memory behind it: a store to it leaves the VM."""

SYSTEM = 0xFFFF_8080_0000_0000
"""Supervisor pages: first the IDT, then the exception stubs, then from SYSTEM_CPUS on a page for each vCPU."""
IDT = SYSTEM
EXCEPTION_STUBS = SYSTEM + PAGE_SIZE
SYSTEM_CPUS = SYSTEM + 0x10_0000
"""Page of vCPU n (GDT, TSS and ring-0 stack) is at SYSTEM_CPUS + n * PAGE_SIZE."""
