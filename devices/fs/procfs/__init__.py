"""procfs: what the kernel tells of itself and of processes, as files. proc(5), fs/proc/.

The formats are Linux's to the byte, for libc, ps, top, free and Python's psutil parse them. What pyvmm does not know
(I/O by process, context switches, interrupts) is 0 or, where the whole file would be that, not there.

    superblock.py  the root            pid.py      the directories of a process and of its tasks
    entries.py     their tables        who.py      whose directory it is, states
    task.py        stat, status...     memory.py   maps, smaps, statm     layout.py  where a program's parts are
    fd.py          fd, fdinfo          mounts.py   mounts, mountinfo      net.py     /proc/net
    system.py      the machine         cpu.py      cpuinfo, stat          sysctl.py  /proc/sys
    locks.py       /proc/locks
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.vfs.mount import FileSystemType

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.inode import SuperBlock


def mount(kernel: Kernel, task: Task | None, source: bytes, flags: int, data: bytes) -> SuperBlock:
    from devices.fs.procfs.superblock import mount

    return mount(kernel, task, source, flags, data)


FILE_SYSTEMS = (FileSystemType(b"proc", mount),)
