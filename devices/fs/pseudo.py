"""What procfs and sysfs are made of: directories described by tables, and files whose text is made when it is read.

A table maps names to `Node`s: how an entry looks, and what makes its inode once somebody asks for it, so that a large
tree costs nothing until it is walked. Text is made anew by each read at offset 0 and kept for the reads that follow, as
fs/seq_file.c does it: whoever reads in pieces sees one moment.
"""

from __future__ import annotations

import errno
from stat import S_IFDIR, S_IFLNK, S_IFREG
from typing import TYPE_CHECKING, NamedTuple

from devices.errors import SysError
from devices.vfs.abi import MAX_FILE_SIZE, SEEK_CUR, SEEK_END, SEEK_SET
from devices.vfs.files import OpenFile
from devices.vfs.inode import Entry, Inode, StatFs, SuperBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.files import Segments
    from devices.vfs.path import Path

    Show = Callable[[Task], bytes]
    """Makes a file's text for the task that reads it."""
    Store = Callable[[Task, bytes], None]
    """Takes what a task has written."""

LONGEST_WRITE = 1 << 16
"""Bytes that a file takes with one write."""
FIRST_POSITION = 3


class Node(NamedTuple):
    """An entry of a table."""

    mode: int
    """Kind and permission bits."""
    make: Callable[[PseudoFs, int, int], Inode]
    """(file system, inode number, mode) -> inode."""


class PseudoFs(SuperBlock):
    """A file system of tables. Nothing can be made in it: these are the errors that say so."""

    no_files = errno.EACCES
    no_names = errno.EPERM

    def __init__(self, kernel: Kernel, source: bytes, flags: int) -> None:
        super().__init__(kernel.new_dev_locked(), source, flags)
        self.kernel = kernel
        self._inos = 0

    def new_inos(self, count: int) -> int:
        """The first of `count` inode numbers that nobody has."""
        first = self._inos + 1
        self._inos += count
        return first

    def statfs(self) -> StatFs:
        return StatFs(self.magic, 4096, 0, 0, 0, 0, 0, self.dev)


class PseudoInode(Inode):
    """Any file of such a file system. Its times are those of its first use; its owner and mode cannot be changed."""

    __slots__ = ("fs",)

    def __init__(self, fs: PseudoFs, ino: int, mode: int) -> None:
        super().__init__(fs, ino, mode)
        self.fs = fs
        self.atime = self.mtime = self.ctime = fs.kernel.clock.realtime_ns()

    def create(self, task: Task, name: bytes, mode: int) -> Inode:
        raise SysError(self.fs.no_files, "no files can be made here")

    def mkdir(self, task: Task, name: bytes, mode: int) -> Inode:
        raise SysError(self.fs.no_names, "no directories can be made here")

    def mknod(self, task: Task, name: bytes, mode: int, rdev: int) -> Inode:
        raise SysError(self.fs.no_names, "no special files can be made here")

    def symlink(self, task: Task, name: bytes, target: bytes) -> Inode:
        raise SysError(self.fs.no_names, "no symbolic links can be made here")

    def link(self, task: Task, name: bytes, target: Inode) -> None:
        raise SysError(self.fs.no_names, "no links can be made here")

    def rename(
        self, task: Task, name: bytes, child: Inode, target: Inode, new_name: bytes, replaced: Inode | None, flags: int
    ) -> None:
        raise SysError(self.fs.no_names if replaced is None else errno.EPERM, "nothing can be moved here")

    def truncate(self, size: int) -> None:
        """Shells open such files with O_TRUNC to write to them."""

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
        if mode is not None or uid is not None or gid is not None:
            raise SysError(errno.EPERM, "owner and mode are the kernel's")
        super().setattr(atime=atime, mtime=mtime, ctime=ctime)


class TableDirectory(PseudoInode):
    """A directory whose entries are those of a table, for ever; `nodes` makes it when it is first needed."""

    __slots__ = ("_first", "_made", "_make", "_table")

    def __init__(self, fs: PseudoFs, ino: int, mode: int, nodes: Callable[[PseudoFs], Mapping[bytes, Node]]) -> None:
        super().__init__(fs, ino, mode)
        self._make = nodes
        self._table: Mapping[bytes, Node] | None = None
        self._first = 0
        self._made: dict[bytes, Inode] = {}

    def _nodes(self) -> Mapping[bytes, Node]:
        nodes = self._table
        if nodes is None:
            nodes = self._table = self._make(self.fs)
            self._first = self.fs.new_inos(len(nodes))
        return nodes

    def refresh(self) -> None:
        self.nlink = 2 + sum(node.mode & S_IFDIR == S_IFDIR for node in self._nodes().values())

    def lookup(self, task: Task, name: bytes) -> Inode | None:
        made = self._made.get(name)
        if made is None and name in self._nodes():
            nodes = self._nodes()
            node = nodes[name]
            made = self._made[name] = node.make(self.fs, self._first + list(nodes).index(name), node.mode)
        return made

    def iterate(self, task: Task, offset: int) -> Iterator[Entry]:
        for index, (name, node) in enumerate(self._nodes().items()):
            position = FIRST_POSITION + index
            if position > offset:
                yield Entry(name, self._first + index, node.mode >> 12, position)


class TextInode(PseudoInode):
    """A file with text: `show` makes it, `store` takes what is written."""

    __slots__ = ("show", "store")

    def __init__(self, fs: PseudoFs, ino: int, mode: int, show: Show | None, store: Store | None) -> None:
        super().__init__(fs, ino, mode)
        self.show = show
        self.store = store

    def open(self, task: Task, path: Path, flags: int) -> OpenFile:
        return TextFile(flags, self.show, self.store)


class LinkInode(PseudoInode):
    """A symbolic link whose text depends on who reads it."""

    __slots__ = ("text",)

    def __init__(self, fs: PseudoFs, ino: int, mode: int, text: Show) -> None:
        super().__init__(fs, ino, mode)
        self.text = text

    def readlink(self, task: Task) -> bytes:
        return self.text(task)


class TextFile(OpenFile):
    """An open text."""

    def __init__(self, flags: int, show: Show | None, store: Store | None = None) -> None:
        super().__init__(flags)
        self._show = show
        self._store = store
        self._text: bytes | None = None

    def read(self, task: Task, segments: Segments) -> int:
        count = self.pread(task, segments, self.position)
        self.position += count
        return count

    def pread(self, task: Task, segments: Segments, offset: int) -> int:
        if self._show is None:
            raise SysError(errno.EINVAL, "cannot be read")
        text = self._text
        if not offset or text is None:
            text = self._text = self._show(task)
        return copy_out(task, segments, text, offset)

    def write(self, task: Task, segments: Segments) -> int:
        count = self.pwrite(task, segments, self.position)
        self.position += count
        return count

    def pwrite(self, task: Task, segments: Segments, offset: int) -> int:
        if self._store is None:
            raise SysError(errno.EINVAL, "cannot be written")
        data = copy_in(task, segments)
        self._store(task, data)
        return len(data)

    def lseek(self, offset: int, whence: int) -> int:
        """seq_lseek(): from the start or the position. The end is not known before it has been read: what the inode
        says of it is 0."""
        base = {SEEK_SET: 0, SEEK_CUR: self.position, SEEK_END: 0}.get(whence)
        if base is None or not 0 <= base + offset <= MAX_FILE_SIZE:
            raise SysError(errno.EINVAL, "position")
        self.position = base + offset
        return self.position

    def truncate(self, task: Task, size: int) -> None:
        """Of no effect: see PseudoInode."""


def copy_out(task: Task, segments: Segments, data: bytes, offset: int) -> int:
    """Read from `data` at `offset` into a program's buffers; the bytes read. SysError(EFAULT) where that is none."""
    done = 0
    for address, length in segments:
        part = data[offset + done : offset + done + length]
        if not part:
            break
        try:
            copied = task.memory.write_partial(address, part)
        except SysError:
            if not done:
                raise
            break
        done += copied
        if copied < len(part):
            break
    return done


def copy_in(task: Task, segments: Segments) -> bytes:
    """What a program writes, as a whole. SysError(EFAULT, EINVAL)."""
    if sum(length for _, length in segments) > LONGEST_WRITE:
        raise SysError(errno.EINVAL, "too long")
    return b"".join(task.memory.read(address, length) for address, length in segments)


# Tables


def text(show: Show | None, mode: int = 0o444, store: Store | None = None) -> Node:
    """A file."""
    return Node(S_IFREG | mode, lambda fs, ino, mode: TextInode(fs, ino, mode, show, store))


def fixed(contents: bytes, mode: int = 0o444) -> Node:
    """A file that always has the same contents; a newline is added."""
    return text(lambda task: contents + b"\n", mode)


def link(target: Show) -> Node:
    return Node(S_IFLNK | 0o777, lambda fs, ino, mode: LinkInode(fs, ino, mode, target))


def directory(nodes: Callable[[PseudoFs], Mapping[bytes, Node]], mode: int = 0o555) -> Node:
    """A directory; its table is made when it is looked up."""
    return Node(S_IFDIR | mode, lambda fs, ino, mode: TableDirectory(fs, ino, mode, nodes))


# Formats


def mask_text(mask: int, bits: int) -> bytes:
    """A set of CPUs as Linux writes it: groups of 32 bits in hexadecimal (%*pb)."""
    groups = []
    while bits > 0:
        width = min(bits, 32)
        groups.append(b"%0*x" % ((width + 3) // 4, mask & (1 << width) - 1))
        mask >>= 32
        bits -= 32
    return b",".join(reversed(groups))


def list_text(mask: int) -> bytes:
    """A set of CPUs as ranges (%*pbl): `0-1,4`."""
    ranges = []
    start = 0
    while mask >> start:
        if mask >> start & 1:
            end = start
            while mask >> end + 1 & 1:
                end += 1
            ranges.append(b"%d" % start if start == end else b"%d-%d" % (start, end))
            start = end
        start += 1
    return b",".join(ranges)
