"""The root of /proc: processes by number, `self`, and what tells of the machine (fs/proc/root.c)."""

from __future__ import annotations

import errno
from stat import S_IFDIR
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from devices.errors import SysError
from devices.fs.pseudo import PseudoFs, TableDirectory
from devices.vfs.inode import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from devices.fs.procfs.pid import PidDirectory
    from devices.fs.procfs.who import Who
    from devices.fs.pseudo import Node
    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.inode import Inode

PROC_SUPER_MAGIC = 0x9FA0
FIRST_PROCESS = 256
"""Positions in the root from here on are those of processes (FIRST_PROCESS_ENTRY)."""


class ProcFs(PseudoFs):
    """proc(5)."""

    fstype = b"proc"
    magic = PROC_SUPER_MAGIC
    no_files = no_names = errno.ENOENT
    """proc_lookup() knows no negative dentries: a name that is not there cannot even be looked up."""

    def __init__(self, kernel: Kernel, source: bytes = b"proc", flags: int = 0) -> None:
        super().__init__(kernel, source, flags)
        self._directories: WeakValueDictionary[tuple[int, bool], PidDirectory] = WeakValueDictionary()
        self.root = ProcRoot(self)

    def directory_of(self, who: Who) -> PidDirectory:
        """The directory of a process or task."""
        key = (who.tid, who.group)
        known = self._directories.get(key)
        if known is not None and known.who.alive and known.who.process is who.process:
            return known
        from devices.fs.procfs.pid import PidDirectory

        made = self._directories[key] = PidDirectory(self, who)
        return made


def machine_files(fs: PseudoFs) -> Mapping[bytes, Node]:
    """Imported when somebody looks into /proc: a program that does not pays nothing for it."""
    from devices.fs.procfs.system import TABLE

    return TABLE


class ProcRoot(TableDirectory):
    """/proc."""

    __slots__ = ("_proc",)

    cacheable = False

    def __init__(self, fs: ProcFs) -> None:
        super().__init__(fs, fs.new_inos(1), S_IFDIR | 0o555, machine_files)
        self._proc = fs

    def refresh(self) -> None:
        self.nlink = 8 + len(self._proc.kernel.processes)

    def lookup(self, task: Task, name: bytes) -> Inode | None:
        from devices.fs.procfs.pid import number_of
        from devices.fs.procfs.who import find

        number = number_of(name)
        if number < 0:
            return super().lookup(task, name)
        who = find(self._proc.kernel, number)
        return self._proc.directory_of(who) if who is not None else None

    def iterate(self, task: Task, offset: int) -> Iterator[Entry]:
        from devices.fs.procfs.pid import ENTRIES, inode_number
        from devices.fs.procfs.who import find

        yield from super().iterate(task, offset)
        kernel = self._proc.kernel
        for pid in sorted(kernel.processes):
            who = find(kernel, pid)
            if who is not None and pid + FIRST_PROCESS > offset:
                yield Entry(b"%d" % pid, inode_number(who, ENTRIES, 0), S_IFDIR >> 12, pid + FIRST_PROCESS)


def mount(kernel: Kernel, task: Task | None, source: bytes, flags: int, data: bytes) -> ProcFs:
    """mount -t proc. hidepid=, gid= and subset= are not there."""
    if data.strip(b"\0"):
        raise SysError(errno.EINVAL, "no options")
    return ProcFs(kernel, source or b"proc", flags)
