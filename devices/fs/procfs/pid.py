"""The directories /proc/[pid] and /proc/[pid]/task/[tid] (fs/proc/base.c).

Everything here is looked up each time: processes come and go on their own. An inode that somebody still uses is found
again, and its number follows from whose it is, so that a walk sees one file where there is one.
"""

from __future__ import annotations

import errno
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from devices.errors import SysError
from devices.fs.procfs.who import Who
from devices.fs.pseudo import PseudoInode, TextFile
from devices.vfs.inode import Entry
from devices.vfs.permissions import generic_permission

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devices.fs.procfs.entries import PidNode
    from devices.fs.procfs.superblock import ProcFs
    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.path import Path

SUID_DUMP_USER = 1
ENTRIES, FDS, FDINFOS, TASKS, NET = range(5)
"""Parts of a directory's inode numbers."""


def inode_number(who: Who, part: int, number: int) -> int:
    """Of a file of `who`'s: the static part of the tree uses numbers below 2^32."""
    return who.tid << 40 | who.group << 39 | part << 36 | number


class PidInode(PseudoInode):
    """A file about a process or task, owned by the user that it runs as."""

    __slots__ = ("who",)

    cacheable = False

    def __init__(self, fs: ProcFs, who: Who, ino: int, mode: int) -> None:
        super().__init__(fs, ino, mode)
        self.who = who
        self.refresh()

    def refresh(self) -> None:
        """task_dump_owner(): root's, if the process has changed who it is."""
        who = self.who
        if not who.alive:
            return
        credentials = who.task.credentials
        own = who.process.dumpable == SUID_DUMP_USER or self.mode == S_IFDIR | 0o555
        self.uid, self.gid = (credentials.euid, credentials.egid) if own else (0, 0)

    def permission(self, task: Task, mask: int) -> None:
        self.refresh()
        generic_permission(self, task, mask)


class PidText(PidInode):
    """A file with text about a process or task."""

    __slots__ = ("node",)

    def __init__(self, fs: ProcFs, who: Who, ino: int, node: PidNode) -> None:
        super().__init__(fs, who, ino, node.mode)
        self.node = node

    def open(self, task: Task, path: Path, flags: int) -> OpenFile:
        who, node = self.who, self.node
        if node.traced:
            who.check_traceable(task)
        show, store = node.show, node.store
        assert show is not None or store is not None

        def read(reader: Task) -> bytes:
            assert show is not None
            _ = who.task  # ESRCH
            return show(reader, who)

        def write(writer: Task, data: bytes) -> None:
            assert store is not None
            _ = who.task
            store(writer, who, data)

        if node.watches_mounts:
            from devices.fs.procfs.mounts import MountsFile

            return MountsFile(flags, read, who.process.mounts)
        return TextFile(flags, read if show else None, write if store else None)


class PidLink(PidInode):
    """A magic link: exe, cwd, root."""

    __slots__ = ("_target",)

    def __init__(self, fs: ProcFs, who: Who, ino: int, target: Callable[[Who], Path]) -> None:
        super().__init__(fs, who, ino, S_IFLNK | 0o777)
        self._target = target

    def follow(self, task: Task) -> Path:
        self.who.check_traceable(task)
        if self.who.ended:
            raise SysError(errno.ENOENT, "a zombie has no files")
        return self._target(self.who)

    def readlink(self, task: Task) -> bytes:
        from devices.vfs.pathname import path_name

        return path_name(task, self.follow(task))


class PidDirectory(PidInode):
    """/proc/[pid] or /proc/[pid]/task/[tid]."""

    __slots__ = ("_made", "_nodes")

    def __init__(self, fs: ProcFs, who: Who) -> None:
        from devices.fs.procfs.entries import GROUP, SINGLE

        self._nodes = GROUP if who.group else SINGLE
        self._made: dict[bytes, PseudoInode] = {}
        super().__init__(fs, who, inode_number(who, ENTRIES, 0), S_IFDIR | 0o555)
        self.nlink = 2 + sum(S_IFMT(node.mode) == S_IFDIR for node in self._nodes.values())

    def lookup(self, task: Task, name: bytes) -> PseudoInode | None:
        node = self._nodes.get(name)
        if node is None or not self.who.alive:
            return None
        made = self._made.get(name)
        if made is None:
            ino = inode_number(self.who, ENTRIES, list(self._nodes).index(name) + 1)
            made = self._made[name] = node.make(self.fs, self.who, ino, node)  # type: ignore[arg-type]  # a ProcFs
        return made

    def iterate(self, task: Task, offset: int) -> Iterator[Entry]:
        if not self.who.alive:
            raise SysError(errno.ENOENT)
        for index, (name, node) in enumerate(self._nodes.items()):
            if index + 3 > offset:
                yield Entry(name, inode_number(self.who, ENTRIES, index + 1), node.mode >> 12, index + 3)


class TaskDirectory(PidInode):
    """/proc/[pid]/task."""

    __slots__ = ("proc",)

    def __init__(self, fs: ProcFs, who: Who, ino: int, node: PidNode) -> None:
        super().__init__(fs, who, ino, node.mode)
        self.proc = fs

    def refresh(self) -> None:
        super().refresh()
        self.nlink = 2 + len(self.who.process.tasks)

    def lookup(self, task: Task, name: bytes) -> PseudoInode | None:
        found = self.who.process.tasks.get(number_of(name))
        return self.proc.directory_of(Who(found.process, found, False)) if found is not None else None

    def iterate(self, task: Task, offset: int) -> Iterator[Entry]:
        for tid, one in sorted(self.who.process.tasks.items()):
            if tid + 3 > offset:
                ino = inode_number(Who(one.process, one, False), ENTRIES, 0)
                yield Entry(b"%d" % tid, ino, S_IFDIR >> 12, tid + 3)


class FdDirectory(PidInode):
    """/proc/[pid]/fd, fdinfo."""

    __slots__ = ("_kept", "_links")

    def __init__(self, fs: ProcFs, who: Who, ino: int, node: PidNode) -> None:
        super().__init__(fs, who, ino, node.mode)
        self._links = node.mode & 0o777 == 0o500
        self._kept: WeakValueDictionary[int, PidInode] = WeakValueDictionary()

    def refresh(self) -> None:
        super().refresh()
        if self.who.alive:
            self.size = len(self.who.task.files.numbers())

    def permission(self, task: Task, mask: int) -> None:
        """proc_fd_permission(): a process may always look at its own."""
        if task.process is not self.who.process:
            super().permission(task, mask)

    def lookup(self, task: Task, name: bytes) -> PseudoInode | None:
        fd = number_of(name)
        self.who.check_traceable(task)
        if self.who.task.files.find(fd) is None:
            return None
        inode = self._kept.get(fd)
        if inode is None:
            from devices.fs.procfs.fd import FdInfo, FdLink

            ino = inode_number(self.who, FDS if self._links else FDINFOS, fd)
            inode = self._kept[fd] = (FdLink if self._links else FdInfo)(self.fs, self.who, ino, fd)  # type: ignore[arg-type]  # a ProcFs
        inode.refresh()
        return inode

    def iterate(self, task: Task, offset: int) -> Iterator[Entry]:
        part, kind = (FDS, S_IFLNK) if self._links else (FDINFOS, S_IFREG)
        for fd in self.who.task.files.numbers():
            if fd + 3 > offset:
                yield Entry(b"%d" % fd, inode_number(self.who, part, fd), kind >> 12, fd + 3)


def number_of(name: bytes) -> int:
    """name_to_int(): the number that a name is, -1 if it is none or has zeros before it."""
    return int(name) if name.isdigit() and len(name) < 10 and (name == b"0" or name[:1] != b"0") else -1
