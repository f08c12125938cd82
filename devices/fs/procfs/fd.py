"""/proc/[pid]/fd and fdinfo: what a descriptor is open on (fs/proc/fd.c)."""

from __future__ import annotations

import errno
from stat import S_IFLNK, S_IFREG
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.fs.procfs.pid import PidInode
from devices.fs.pseudo import TextFile
from devices.vfs.abi import O_ACCMODE, O_CLOEXEC, O_PATH, O_RDONLY, O_WRONLY

if TYPE_CHECKING:
    from devices.fs.procfs.superblock import ProcFs
    from devices.fs.procfs.who import Who
    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.path import Path


def file_of(who: Who, fd: int) -> OpenFile:
    """SysError(ENOENT) when the descriptor is closed by now."""
    file = who.task.files.find(fd)
    if file is None:
        raise SysError(errno.ENOENT)
    return file


class FdLink(PidInode):
    """A magic link to what a descriptor is open on; opening it opens the file again."""

    __slots__ = ("fd",)

    def __init__(self, fs: ProcFs, who: Who, ino: int, fd: int) -> None:
        self.fd = fd
        super().__init__(fs, who, ino, S_IFLNK | 0o500)
        self.size = 64

    def refresh(self) -> None:
        """Who may read and write the link tells how the file is open."""
        super().refresh()
        file = self.who.task.files.find(self.fd) if self.who.alive else None
        if file is not None:
            access = file.flags & O_ACCMODE
            readable = access != O_WRONLY and not file.flags & O_PATH
            writable = access != O_RDONLY and not file.flags & O_PATH
            self.mode = S_IFLNK | (0o500 if readable else 0) | (0o300 if writable else 0) or S_IFLNK

    def follow(self, task: Task) -> Path | None:
        self.who.check_traceable(task)
        file = file_of(self.who, self.fd)
        if file.path is None:
            raise SysError(errno.ENXIO, "a file that is nowhere")
        return file.path

    def readlink(self, task: Task) -> bytes:
        from devices.vfs.pathname import path_name

        self.who.check_traceable(task)
        file = file_of(self.who, self.fd)
        if file.path is not None:
            return path_name(task, file.path)
        return b"anon_inode:[%s]" % type(file).__name__.lower().encode()


class FdInfo(PidInode):
    """How a descriptor is open."""

    __slots__ = ("fd",)

    def __init__(self, fs: ProcFs, who: Who, ino: int, fd: int) -> None:
        self.fd = fd
        super().__init__(fs, who, ino, S_IFREG | 0o444)

    def open(self, task: Task, path: Path, flags: int) -> OpenFile:
        self.who.check_traceable(task)
        return TextFile(flags, self._show)

    def _show(self, reader: Task) -> bytes:
        file = file_of(self.who, self.fd)
        cloexec = O_CLOEXEC if self.who.task.files.cloexec(self.fd) else 0
        mount, ino = (file.path.mount.id, file.path.inode.ino) if file.path is not None else (0, 0)
        text = b"pos:\t%d\nflags:\t0%o\nmnt_id:\t%d\nino:\t%d\n" % (file.position, file.flags | cloexec, mount, ino)
        more = getattr(file, "fdinfo", None)
        return text + (more() if more is not None else b"")
