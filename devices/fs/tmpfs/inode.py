"""Directories, symbolic links and special files of tmpfs, and what all its inodes share."""

from __future__ import annotations

import errno
from bisect import bisect_left
from stat import S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.vfs.abi import RENAME_EXCHANGE, RENAME_WHITEOUT, XATTR_CREATE, XATTR_REPLACE
from devices.vfs.inode import Entry, Inode
from devices.vfs.permissions import CAP_SYS_ADMIN
from vmm.layout import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.fs.tmpfs.superblock import Tmpfs
    from devices.task.task import Task

FIRST_NUMBER = 3
"""Of an entry of a directory; 1 and 2 are `.` and `..`."""
SHORT_SYMLINK_LEN = 128
"""A longer target takes a page."""
INODE_SPACE = 1024
XATTR_SPACE = 41
"""sizeof(struct simple_xattr), and the NUL of the name."""
XATTR_NAMESPACES = (b"user.", b"trusted.", b"security.")


class TmpfsInode(Inode):
    """A file of any kind; its space is charged from the start until it is released."""

    __slots__ = ("_xattrs", "fs")

    def __init__(self, fs: Tmpfs, mode: int, uid: int, gid: int) -> None:
        fs.charge_space(INODE_SPACE)
        super().__init__(fs, fs.new_ino(), mode, uid, gid)
        self.fs = fs
        self._xattrs: dict[bytes, bytes] | None = None
        self.atime = self.mtime = self.ctime = self.btime = fs.now()

    @property
    def blocks(self) -> int:
        return 0

    def changed(self) -> None:
        """Its contents were changed just now."""
        self.mtime = self.ctime = self.fs.now()

    def released(self) -> None:
        self.fs.used_space -= INODE_SPACE + sum(map(_space_of, (self._xattrs or {}).items()))
        self._xattrs = None

    # Extended attributes

    def _check_xattr(self, name: bytes) -> None:
        if not self.fs.has_xattrs or not name.startswith(XATTR_NAMESPACES):
            raise SysError(errno.EOPNOTSUPP)

    def getxattr(self, task: Task, name: bytes) -> bytes:
        self._check_xattr(name)
        value = (self._xattrs or {}).get(name)
        if value is None:
            raise SysError(errno.ENODATA)
        return value

    def setxattr(self, task: Task, name: bytes, value: bytes, flags: int) -> None:
        self._check_xattr(name)
        if self._xattrs is None:
            self._xattrs = {}
        old = self._xattrs.get(name)
        if old is not None and flags & XATTR_CREATE:
            raise SysError(errno.EEXIST)
        if old is None and flags & XATTR_REPLACE:
            raise SysError(errno.ENODATA)
        self.fs.charge_space(_space_of((name, value)))
        if old is not None:
            self.fs.used_space -= _space_of((name, old))
        self._xattrs[name] = value
        self.ctime = self.fs.now()

    def listxattr(self, task: Task) -> list[bytes]:
        names = sorted(self._xattrs or ())
        if not task.credentials.capable(CAP_SYS_ADMIN):
            names = [name for name in names if not name.startswith(b"trusted.")]
        return names

    def removexattr(self, task: Task, name: bytes) -> None:
        self._check_xattr(name)
        value = (self._xattrs or {}).pop(name, None)
        if value is None:
            raise SysError(errno.ENODATA)
        self.fs.used_space -= _space_of((name, value))
        self.ctime = self.fs.now()


def _space_of(xattr: tuple[bytes, bytes]) -> int:
    """simple_xattr_space()."""
    return XATTR_SPACE + len(xattr[0]) + len(xattr[1])


class Special(TmpfsInode):
    """A device file, FIFO or socket: the VFS knows what to do with it."""

    __slots__ = ()

    def __init__(self, fs: Tmpfs, mode: int, uid: int, gid: int, rdev: int = 0) -> None:
        super().__init__(fs, mode, uid, gid)
        self.rdev = rdev


class Symlink(TmpfsInode):
    __slots__ = ("target",)

    def __init__(self, fs: Tmpfs, target: bytes, uid: int, gid: int) -> None:
        if len(target) >= PAGE_SIZE:
            raise SysError(errno.ENAMETOOLONG)
        pages = self._pages_of(fs, target)
        fs.charge_blocks(pages)
        try:
            super().__init__(fs, S_IFLNK | 0o777, uid, gid)
        except SysError:
            fs.used_blocks -= pages
            raise
        self.target = target
        self.size = len(target)

    @staticmethod
    def _pages_of(fs: Tmpfs, target: bytes) -> int:
        return int(fs.sparse and len(target) >= SHORT_SYMLINK_LEN)

    @property
    def blocks(self) -> int:
        return self._pages_of(self.fs, self.target) * 8

    def readlink(self, task: Task) -> bytes:
        return self.target

    def released(self) -> None:
        self.fs.used_blocks -= self._pages_of(self.fs, self.target)
        super().released()


class Directory(TmpfsInode):
    """A directory. The newest entry comes first, and each keeps its number, so that positions stay good whatever is
    removed or made (simple_offset_add())."""

    __slots__ = ("_children", "_names", "_next", "_order")

    def __init__(self, fs: Tmpfs, mode: int, uid: int, gid: int) -> None:
        super().__init__(fs, S_IFDIR | mode, uid, gid)
        self.nlink = 2
        self.size = 2 * fs.entry_size
        self._children: dict[bytes, tuple[TmpfsInode, int]] = {}
        """Inode and number by name."""
        self._names: dict[int, bytes] = {}
        self._order: list[int] = []
        """Numbers in ascending order, those of removed entries among them."""
        self._next = FIRST_NUMBER

    # Entries

    def _add(self, name: bytes, inode: TmpfsInode) -> None:
        number = self._next
        self._next += 1
        self._children[name] = (inode, number)
        self._names[number] = name
        self._order.append(number)
        self.size += self.fs.entry_size
        self.changed()

    def _drop(self, name: bytes) -> None:
        _, number = self._children.pop(name)
        del self._names[number]
        if len(self._order) > 2 * len(self._names) + 16:
            self._order = sorted(self._names)
        self.size -= self.fs.entry_size
        self.changed()

    def lookup(self, task: Task, name: bytes) -> Inode | None:
        found = self._children.get(name)
        return found[0] if found is not None else None

    def iterate(self, task: Task, offset: int) -> Iterator[Entry]:
        order, names, children = self._order, self._names, self._children
        at = bisect_left(order, offset) if offset >= FIRST_NUMBER else len(order)
        while at:
            at -= 1
            number = order[at]
            name = names.get(number)
            if name is not None:
                inode = children[name][0]
                yield Entry(name, inode.ino, inode.mode >> 12, number)

    # Making

    def create(self, task: Task, name: bytes, mode: int) -> Inode:
        inode = self._regular(task, mode)
        self._add(name, inode)
        return inode

    def _regular(self, task: Task, mode: int) -> TmpfsInode:
        from devices.fs.tmpfs.file import Regular

        uid, gid, _ = self.owner_of_new(task.credentials)
        return Regular(self.fs, S_IFREG | mode, uid, gid)

    def tmpfile(self, task: Task, mode: int) -> Inode:
        inode = self._regular(task, mode)
        inode.nlink = 0
        return inode

    def mkdir(self, task: Task, name: bytes, mode: int) -> Inode:
        uid, gid, setgid = self.owner_of_new(task.credentials)
        inode = Directory(self.fs, mode | setgid, uid, gid)
        self._add(name, inode)
        self.nlink += 1
        return inode

    def mknod(self, task: Task, name: bytes, mode: int, rdev: int) -> Inode:
        uid, gid, _ = self.owner_of_new(task.credentials)
        inode = Special(self.fs, mode, uid, gid, rdev)
        self._add(name, inode)
        return inode

    def symlink(self, task: Task, name: bytes, target: bytes) -> Inode:
        uid, gid, _ = self.owner_of_new(task.credentials)
        inode = Symlink(self.fs, target, uid, gid)
        self._add(name, inode)
        return inode

    def link(self, task: Task, name: bytes, target: Inode) -> None:
        """Each name but the first counts as an inode against nr_inodes."""
        assert isinstance(target, TmpfsInode)
        if target.nlink:
            self.fs.charge_space(INODE_SPACE)
        target.nlink += 1
        self._add(name, target)
        target.ctime = self.ctime

    # Removing

    def unlink(self, task: Task, name: bytes, child: Inode) -> None:
        self._drop(name)
        self._unlinked(child)

    def _unlinked(self, child: Inode) -> None:
        """A name of the file, which is no directory, is gone."""
        if child.nlink > 1:
            self.fs.used_space -= INODE_SPACE
        child.nlink -= 1
        child.ctime = self.ctime

    def rmdir(self, task: Task, name: bytes, child: Inode) -> None:
        assert isinstance(child, Directory)
        if child._children:
            raise SysError(errno.ENOTEMPTY)
        self._drop(name)
        self._directory_gone(child)

    def _directory_gone(self, child: Directory) -> None:
        child.nlink = 0
        child.ctime = self.ctime
        self.nlink -= 1

    # Moving

    def rename(
        self, task: Task, name: bytes, child: Inode, target: Inode, new_name: bytes, replaced: Inode | None, flags: int
    ) -> None:
        assert isinstance(target, Directory)
        assert isinstance(child, TmpfsInode)
        if flags & RENAME_EXCHANGE:
            assert isinstance(replaced, TmpfsInode)
            self._exchange(name, child, target, new_name, replaced)
            return
        if flags & RENAME_WHITEOUT and not self.fs.sparse:
            raise SysError(errno.EINVAL, "no whiteouts here")
        if isinstance(replaced, Directory) and replaced._children:
            raise SysError(errno.ENOTEMPTY)
        whiteout = self._whiteout(task) if flags & RENAME_WHITEOUT else None
        if replaced is not None:
            target._drop(new_name)
            if isinstance(replaced, Directory):
                target._directory_gone(replaced)
            else:
                target._unlinked(replaced)
        self._drop(name)
        if whiteout is not None:
            self._add(name, whiteout)
        target._add(new_name, child)
        if isinstance(child, Directory):
            self.nlink -= 1
            target.nlink += 1
        child.ctime = target.ctime

    def _whiteout(self, task: Task) -> Special:
        uid, gid, _ = self.owner_of_new(task.credentials)
        return Special(self.fs, S_IFCHR, uid, gid)

    def _exchange(self, name: bytes, child: TmpfsInode, target: Directory, new_name: bytes, other: TmpfsInode) -> None:
        """simple_rename_exchange()."""
        self._drop(name)
        target._drop(new_name)
        self._add(name, other)
        target._add(new_name, child)
        if self is not target:
            moved = (S_IFMT(child.mode) == S_IFDIR) - (S_IFMT(other.mode) == S_IFDIR)
            self.nlink -= moved
            target.nlink += moved
        child.ctime = other.ctime = target.ctime

    # The end of the file system

    def empty(self) -> None:
        """Let go of everything below."""
        todo: list[TmpfsInode] = [self]
        while todo:
            inode = todo.pop()
            if isinstance(inode, Directory):
                todo += [child for child, _ in inode._children.values()]
                inode._children = {}
                inode._names, inode._order = {}, []
            elif inode.nlink > 1:
                inode.nlink -= 1
                continue
            inode.nlink = 0
            inode.released()
