"""The console: the machine's standard streams as devices and as files that have a name.

`/dev/console` (5:1) is the terminal among the host's standard streams, or, where there is none, its input is the
machine's standard input and its output the machine's standard output. `/dev/tty` (5:0) is the terminal, if there is
one.

A stream that is no terminal (a pipe, a file) is a file on a file system that is mounted nowhere, so that /dev/stdin and
/proc/self/fd/1 can be opened again: with no more rights than the host's descriptor has, whatever else the host allows.
"""

from __future__ import annotations

import errno
import fcntl
import os
from stat import S_IFCHR, S_IFIFO, S_IFMT, S_IFSOCK
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.fs.chardev import CONSOLE, TTY, TTYAUX_MAJOR
from devices.fs.console import ConsoleFile
from devices.fs.internal import internal_mount_of
from devices.vfs.abi import AT_FDCWD, MAY_READ, MAY_WRITE, O_ACCMODE, O_APPEND, O_RDONLY, O_WRONLY, makedev
from devices.vfs.inode import Inode, StatFs, SuperBlock
from devices.vfs.mount import unnamed_path
from devices.vfs.path import walk

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.files import OpenFile, Segments
    from devices.vfs.path import Dentry, Path

SOCKFS_MAGIC = 0x534F434B
Streams = tuple[int, int, int]


def set_console(kernel: Kernel, stdio: Streams) -> None:
    """The host descriptors of the machine's standard streams, which a closed one is -1 of."""
    vars(kernel)["console"] = stdio


def streams_of(kernel: Kernel) -> Streams | None:
    found: Streams | None = vars(kernel).get("console")
    return found


def access_of(host_fd: int) -> int:
    """MAY_READ and MAY_WRITE, as the host's descriptor allows. 0 for one that is closed."""
    try:
        mode = fcntl.fcntl(host_fd, fcntl.F_GETFL) & O_ACCMODE
    except (OSError, ValueError):  # closed, or -1
        return 0
    return {O_RDONLY: MAY_READ, O_WRONLY: MAY_WRITE}.get(mode, MAY_READ | MAY_WRITE)


def reopen(host_fd: int, flags: int) -> ConsoleFile:
    """Another open file description of a standard stream. SysError(EACCES) where it is not open for that."""
    wanted = {O_RDONLY: MAY_READ, O_WRONLY: MAY_WRITE}.get(flags & O_ACCMODE, MAY_READ | MAY_WRITE)
    if wanted & ~access_of(host_fd):
        raise SysError(errno.EACCES, "the host's descriptor is not open for that")
    file = ConsoleFile(host_fd)
    file.flags = flags | file.flags & O_APPEND
    return file


def terminal_of(streams: Streams) -> int:
    """The terminal among the streams, best one that can be read and written; -1 if there is none."""
    terminals = [fd for fd in streams if access_of(fd) and os.isatty(fd)]
    both = [fd for fd in terminals if access_of(fd) == MAY_READ | MAY_WRITE]
    return (both or terminals or [-1])[0]


def open_console(task: Task, minor: int, flags: int) -> OpenFile:
    """Device 5:`minor`. SysError(ENXIO) where there is nothing behind it."""
    streams = streams_of(task.kernel)
    terminal = terminal_of(streams) if streams is not None else -1
    if terminal >= 0:
        return reopen(terminal, flags)
    if minor == TTY or streams is None:
        raise SysError(errno.ENXIO, "no terminal")
    access = flags & O_ACCMODE
    if access == O_RDONLY:
        return reopen(streams[0], flags)
    output = next((fd for fd in streams[1:] if access_of(fd) & MAY_WRITE), -1)
    if access == O_WRONLY:
        return reopen(output, flags)
    return ConsolePair(streams[0], output, flags)


class ConsolePair(ConsoleFile):
    """A console without a terminal, open for reading and writing: two streams. Readiness is that of its input."""

    def __init__(self, host_in: int, host_out: int, flags: int) -> None:
        if not (access_of(host_in) & MAY_READ and access_of(host_out) & MAY_WRITE):
            raise SysError(errno.ENXIO, "a standard stream is closed")
        super().__init__(host_in)
        self.flags = flags
        self._output = reopen(host_out, flags & ~O_ACCMODE | O_WRONLY)

    def write(self, task: Task, segments: Segments) -> int:
        return self._output.write(task, segments)


# Streams that are no terminals


class StreamFs(SuperBlock):
    """Where they are; mounted nowhere."""

    fstype = b"stdio"
    magic = SOCKFS_MAGIC

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.new_dev_locked(), b"stdio")
        self.root = Inode(self, 1, 0o040000)

    def statfs(self) -> StatFs:
        return StatFs(self.magic, 4096, 0, 0, 0, 0, 0, self.dev)

    def name_of(self, dentry: Dentry) -> bytes | None:
        """Of what kind it is: a name of the host's is none of the guest's business."""
        inode = dentry.inode
        kind = {S_IFIFO: b"pipe", S_IFSOCK: b"socket"}.get(S_IFMT(inode.mode), b"stdio")
        return b"%s:[%d]" % (kind, inode.ino)


class StreamInode(Inode):
    """A standard stream of the machine's."""

    __slots__ = ("host_fd",)

    opens_itself = True

    def __init__(self, sb: StreamFs, host_fd: int) -> None:
        self.host_fd = host_fd
        super().__init__(sb, os.fstat(host_fd).st_ino, os.fstat(host_fd).st_mode)
        self.refresh()

    def refresh(self) -> None:
        host = os.fstat(self.host_fd)
        self.mode, self.uid, self.gid, self.rdev = host.st_mode, host.st_uid, host.st_gid, host.st_rdev
        self.size = host.st_size
        self.atime, self.mtime, self.ctime = host.st_atime_ns, host.st_mtime_ns, host.st_ctime_ns

    def permission(self, task: Task, mask: int) -> None:
        if mask & ~access_of(self.host_fd):
            raise SysError(errno.EACCES, "the host's descriptor is not open for that")

    def setattr(
        self,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime: int | None = None,
        mtime: int | None = None,
        ctime: int | None = None,
    ) -> None:
        """The host's file stays as it is. O_TRUNC is of no effect: the program writes where the stream is."""
        if mode is not None or uid is not None or gid is not None:
            raise SysError(errno.EPERM, "the host's")

    def open(self, task: Task, path: Path, flags: int) -> OpenFile:
        return reopen(self.host_fd, flags)


def stream_path(kernel: Kernel, host_fd: int) -> Path:
    """The place of a stream that is no terminal."""
    mount = internal_mount_of(kernel, b"stdio", lambda: StreamFs(kernel))
    sb = mount.sb
    assert isinstance(sb, StreamFs)
    return unnamed_path(mount, StreamInode(sb, host_fd))


def attach_streams_locked(task: Task, stdio: Streams) -> None:
    """Once /dev is mounted: give the standard streams of the first process their places, terminals /dev/console."""
    set_console(task.kernel, stdio)
    for number in range(3):
        file = task.files.find(number)
        if not isinstance(file, ConsoleFile) or file.path is not None:
            continue
        place = console_place(task) if os.isatty(file.host_fd) else None
        file.attach(place or stream_path(task.kernel, file.host_fd))


def console_place(task: Task) -> Path | None:
    """/dev/console, if the tree has it and it is the device."""
    try:
        place = walk(task, AT_FDCWD, b"/dev/console")
    except SysError:
        return None
    inode = place.inode
    is_console = S_IFMT(inode.mode) == S_IFCHR and inode.rdev == makedev(TTYAUX_MAJOR, CONSOLE)
    return place if is_console else None
