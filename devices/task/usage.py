"""What processes have used: struct rusage (getrusage(2), wait4(2)).

All CPU time is user time: the host does not tell a program's own from what is done for it. The counters that nobody
keeps are 0. ru_maxrss is the most memory that was in use when somebody looked, or when an address space went.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from devices.time.abi import NSEC_PER_SEC, NSEC_PER_USEC
from devices.time.cputime import process_cpu_ns
from vmm.layout import PAGE_SHIFT

if TYPE_CHECKING:
    from devices.task.process import Process

RUSAGE = Struct("<18q")
"""struct rusage: ru_utime and ru_stime, then ru_maxrss and 13 counters."""


def pack_usage(ns: int, pages: int) -> bytes:
    """struct rusage for CPU time in ns and the most memory in pages."""
    seconds, rest = divmod(ns, NSEC_PER_SEC)
    return RUSAGE.pack(seconds, rest // NSEC_PER_USEC, 0, 0, pages << PAGE_SHIFT - 10, *(0,) * 13)


def used(process: Process) -> tuple[int, int]:
    """RUSAGE_SELF."""
    process.note_resident()
    return process_cpu_ns(process), process.resident


def used_by_children(process: Process) -> tuple[int, int]:
    """RUSAGE_CHILDREN: those that were waited for, and theirs."""
    return process.children_ns, process.children_resident


def used_with_children(process: Process) -> tuple[int, int]:
    """RUSAGE_BOTH: what is added to the parent's children once it was waited for."""
    ns, resident = used(process)
    return ns + process.children_ns, max(resident, process.children_resident)
