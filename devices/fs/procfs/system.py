"""What /proc tells of the machine: memory, file systems, versions, and the tables of devices that it does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from devices.fs.procfs import cpu, sysctl
from devices.fs.procfs.locks import locks
from devices.fs.procfs.memory import sizes
from devices.fs.pseudo import directory, fixed, link, text
from vmm.layout import PAGE_SHIFT

if TYPE_CHECKING:
    from devices.fs.pseudo import Node
    from devices.kernel import Kernel
    from devices.task.task import Task

KILOBYTES = PAGE_SHIFT - 10
ZONE_ORDERS = 11


class Memory(NamedTuple):
    """The machine's memory in pages."""

    total: int
    free: int
    anonymous: int
    mapped: int
    shared: int
    tables: int
    locked: int
    committed: int

    @property
    def cached(self) -> int:
        """What is in use and not a program's own: pages of files and of tmpfs."""
        return max(0, self.total - self.free - self.anonymous - self.tables)


def memory_of(kernel: Kernel) -> Memory:
    anonymous = mapped = shared = tables = locked = committed = 0
    for process in kernel.processes.values():
        s = sizes(process)
        anonymous += s.anonymous
        mapped += s.file + s.shared_memory
        shared += s.shared_memory
        locked += s.locked
        committed += s.data + s.stack + s.shared_memory
        tables += process.memory.table.tables
    frames = kernel.memory.frames
    return Memory(kernel.memory.total, frames.free, anonymous, mapped, shared, tables, locked, committed)


def meminfo(task: Task) -> bytes:
    """/proc/meminfo (fs/proc/meminfo.c)."""
    m = memory_of(task.kernel)
    available = m.free + max(0, m.cached - m.shared)
    pages = [
        (b"MemTotal", m.total), (b"MemFree", m.free), (b"MemAvailable", available), (b"Buffers", 0),
        (b"Cached", m.cached), (b"SwapCached", 0), (b"Active", m.anonymous), (b"Inactive", m.cached),
        (b"Active(anon)", m.anonymous), (b"Inactive(anon)", 0), (b"Active(file)", 0), (b"Inactive(file)", m.cached),
        (b"Unevictable", m.locked), (b"Mlocked", m.locked), (b"SwapTotal", 0), (b"SwapFree", 0), (b"Zswap", 0),
        (b"Zswapped", 0), (b"Dirty", 0), (b"Writeback", 0), (b"AnonPages", m.anonymous), (b"Mapped", m.mapped),
        (b"Shmem", m.shared), (b"KReclaimable", 0), (b"Slab", 0), (b"SReclaimable", 0), (b"SUnreclaim", 0),
        (b"KernelStack", 0), (b"PageTables", m.tables), (b"SecPageTables", 0), (b"NFS_Unstable", 0), (b"Bounce", 0),
        (b"WritebackTmp", 0), (b"CommitLimit", m.total // 2), (b"Committed_AS", m.committed), (b"VmallocTotal", 0),
        (b"VmallocUsed", 0), (b"VmallocChunk", 0), (b"Percpu", 0), (b"AnonHugePages", 0), (b"ShmemHugePages", 0),
        (b"ShmemPmdMapped", 0), (b"FileHugePages", 0), (b"FilePmdMapped", 0), (b"Balloon", 0),
    ]  # fmt: skip
    counts = (b"HugePages_Total", b"HugePages_Free", b"HugePages_Rsvd", b"HugePages_Surp")
    rest = ((b"Hugepagesize", 2048), (b"Hugetlb", 0), (b"DirectMap4k", m.total << KILOBYTES), (b"DirectMap2M", 0))
    return (
        b"".join(kilobytes(name, count << KILOBYTES) for name, count in pages)
        + b"".join((name + b":").ljust(16) + b"%8d\n" % 0 for name in counts)
        + b"".join(kilobytes(name, value) for name, value in rest)
    )


def kilobytes(name: bytes, value: int) -> bytes:
    return (name + b":").ljust(16) + b"%8d kB\n" % value


def vmstat(task: Task) -> bytes:
    """/proc/vmstat: the counts of pages; events are not counted."""
    m = memory_of(task.kernel)
    values = (
        (b"nr_free_pages", m.free), (b"nr_inactive_anon", 0), (b"nr_active_anon", m.anonymous),
        (b"nr_inactive_file", m.cached), (b"nr_active_file", 0), (b"nr_unevictable", m.locked), (b"nr_mlock", m.locked),
        (b"nr_anon_pages", m.anonymous), (b"nr_mapped", m.mapped), (b"nr_file_pages", m.cached), (b"nr_dirty", 0),
        (b"nr_writeback", 0), (b"nr_shmem", m.shared), (b"nr_page_table_pages", m.tables), (b"pgpgin", 0),
        (b"pgpgout", 0), (b"pswpin", 0), (b"pswpout", 0), (b"pgfault", 0), (b"pgmajfault", 0), (b"oom_kill", 0),
    )  # fmt: skip
    return b"".join(b"%s %d\n" % value for value in values)


def buddyinfo(task: Task) -> bytes:
    """/proc/buddyinfo: free memory as the largest blocks that it could be in."""
    free = task.kernel.memory.frames.free
    counts = [free >> order & 1 for order in range(ZONE_ORDERS - 1)] + [free >> ZONE_ORDERS - 1]
    return b"Node 0, zone   Normal " + b"".join(b"%6d " % count for count in counts) + b"\n"


# Names


def version(task: Task) -> bytes:
    """/proc/version."""
    from devices.task.syscalls import RELEASE, SYSNAME, VERSION

    return b"%s version %s (pyvmm@pyvmm) (cc) %s\n" % (SYSNAME, RELEASE, VERSION)


def filesystems(task: Task) -> bytes:
    """/proc/filesystems."""
    from devices.fs.registry import MODULES

    return b"".join(b"nodev\t%s\n" % name for name in sorted(MODULES))


def interrupts(task: Task) -> bytes:
    """/proc/interrupts: no interrupt reaches the guest."""
    return b" " * 11 + b"".join((b"CPU%d" % n).ljust(11) for n in range(task.kernel.cpus)) + b"\n"


def self_link(task: Task) -> bytes:
    return b"%d" % task.process.pid


def thread_self_link(task: Task) -> bytes:
    return b"%d/task/%d" % (task.process.pid, task.tid)


def mounts_link(task: Task) -> bytes:
    return b"self/mounts"


def net_link(task: Task) -> bytes:
    return b"self/net"


DEVICES = (
    b"Character devices:\n  1 mem\n  5 /dev/tty\n  5 /dev/console\n  5 /dev/ptmx\n 10 misc\n136 pts\n\nBlock devices:\n"
)
TABLE: dict[bytes, Node] = {
    b"self": link(self_link),
    b"thread-self": link(thread_self_link),
    b"mounts": link(mounts_link),
    b"net": link(net_link),
    b"buddyinfo": text(buddyinfo),
    b"cgroups": fixed(b"#subsys_name\thierarchy\tnum_cgroups\tenabled"),
    b"cmdline": fixed(b""),
    b"consoles": fixed(b"console0             -W- (EC  p  )    5:1"),
    b"cpuinfo": text(cpu.cpuinfo),
    b"crypto": text(lambda task: b""),
    b"devices": text(lambda task: DEVICES),
    b"diskstats": text(lambda task: b""),
    b"filesystems": text(filesystems),
    b"interrupts": text(interrupts),
    b"loadavg": text(cpu.loadavg),
    b"locks": text(locks),
    b"meminfo": text(meminfo),
    b"misc": text(lambda task: b""),
    b"modules": text(lambda task: b""),
    b"partitions": fixed(b"major minor  #blocks  name\n"),
    b"stat": text(cpu.stat),
    b"swaps": fixed(b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority"),
    b"sys": directory(lambda fs: sysctl.TREE),
    b"uptime": text(cpu.uptime),
    b"version": text(version),
    b"vmstat": text(vmstat),
}
