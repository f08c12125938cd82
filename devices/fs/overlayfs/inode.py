"""Super block and inodes of an overlay."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, cast
from weakref import WeakValueDictionary

from devices.errors import SysError
from devices.fs.overlayfs.copy_up import Mounter, copy_attributes, copy_contents, make_copy
from devices.vfs.abi import O_ACCMODE, O_RDONLY, O_TRUNC
from devices.vfs.inode import SB_RDONLY, Entry, Inode, StatFs, SuperBlock

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.path import Path

OPAQUE = b"trusted.overlay.opaque"
PRIVATE = b"trusted.overlay."
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
DT_CHR = 2
UPPER_INO = 1 << 50
"""Added to the inode numbers of files that only the upper layer has: lower ones keep theirs when they are copied up."""


def is_whiteout(inode: Inode) -> bool:
    return stat.S_ISCHR(inode.mode) and inode.rdev == 0


def is_opaque(task: Task, inode: Inode) -> bool:
    try:
        return inode.getxattr(task, OPAQUE) == b"y"
    except SysError:
        return False


class OverlayFs(SuperBlock):
    """Layers put together. `lower`: root directories of the read-only layers, the highest first; `upper`: the root of
    the writable one, None for an overlay that is read-only."""

    fstype = b"overlay"
    magic = 0x794C7630

    def __init__(self, kernel: Kernel, lower: Sequence[Inode], upper: Inode | None, source: bytes = b"overlay") -> None:
        super().__init__(kernel.new_dev_locked(), source, 0 if upper is not None else SB_RDONLY)
        self.mounter = cast("Task", Mounter(kernel))
        self.inodes: WeakValueDictionary[int, OverlayInode] = WeakValueDictionary()
        self.upper_root = upper
        self.layers = [inode.sb for inode in (upper, *lower) if inode is not None]
        self.root = OverlayInode(self, None, b"", upper, list(lower))

    def inode_of(self, parent: OverlayInode, name: bytes, upper: Inode | None, lower: list[Inode]) -> OverlayInode:
        """The inode for these parts: the one in use, if there is one."""
        real = upper if upper is not None else lower[0]
        known = self.inodes.get(id(real))
        if known is not None and known.has(real):
            return known
        inode = OverlayInode(self, parent, name, upper, lower)
        for part in (upper, *lower[:1]):
            if part is not None:
                self.inodes[id(part)] = inode
        return inode

    def statfs(self) -> StatFs:
        return self.layers[0].statfs()._replace(type=self.magic, fsid=self.dev)

    def sync(self) -> None:
        self.layers[0].sync()

    def shutdown(self) -> None:
        for layer in self.layers:
            layer.shutdown()


class OverlayInode(Inode):
    """A file of the overlay: `upper` is what the upper layer has of it, `lower` what the others have (of a file one, of
    a directory all that are merged)."""

    __slots__ = ("fs", "lower", "name", "parent", "upper")

    def __init__(
        self, sb: OverlayFs, parent: OverlayInode | None, name: bytes, upper: Inode | None, lower: list[Inode]
    ) -> None:
        real = upper if upper is not None else lower[0]
        super().__init__(sb, lower[0].ino if lower else real.ino + UPPER_INO, real.mode)
        self.fs = sb
        self.parent = parent
        """Where it was found: where it goes when it is copied up."""
        self.name = name
        self.upper = upper
        self.lower = lower
        self.take()

    @property
    def real(self) -> Inode:
        return self.upper if self.upper is not None else self.lower[0]

    def has(self, inode: Inode) -> bool:
        return self.upper is inode or (bool(self.lower) and self.lower[0] is inode)

    # Attributes

    def take(self) -> None:
        real = self.real
        self.mode, self.uid, self.gid = real.mode, real.uid, real.gid
        self.rdev, self.size = real.rdev, real.size
        self.nlink = 1 if stat.S_ISDIR(real.mode) else real.nlink
        self.atime, self.mtime, self.ctime, self.btime = real.atime, real.mtime, real.ctime, real.btime

    def refresh(self) -> None:
        self.real.refresh()
        self.take()

    @property
    def blocks(self) -> int:
        return self.real.blocks

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
        self.copy_up(keep=size)
        self.real.setattr(mode=mode, uid=uid, gid=gid, size=size, atime=atime, mtime=mtime, ctime=ctime)
        self.take()

    def truncate(self, size: int) -> None:
        self.setattr(size=size)

    # Copying up

    def writable_root(self) -> Inode:
        if self.fs.upper_root is None:
            raise SysError(errno.EROFS, "the overlay has no upper layer")
        return self.fs.upper_root

    def copy_up(self, keep: int | None = None) -> Inode:
        """The file in the upper layer, made if it is not there; `keep`: bytes of its contents that will be needed."""
        if self.upper is not None:
            return self.upper
        self.writable_root()
        parent = self.parent
        assert parent is not None  # the root is in every layer
        if self.nlink == 0 or self.name == b"":
            raise SysError(errno.ESTALE, "the name under which it would be copied is gone")
        directory = parent.copy_up()
        old = self.lower[0]
        old.refresh()
        mounter = self.fs.mounter
        upper = make_copy(mounter, directory, self.name, old)
        if stat.S_ISREG(old.mode):
            copy_contents(old, upper, old.size if keep is None else min(keep, old.size))
        copy_attributes(mounter, old, upper)
        self.upper = upper
        self.fs.inodes[id(upper)] = self
        if not stat.S_ISDIR(old.mode):
            self.lower = self.lower[:1]  # its number stays what it was
        self.take()
        return upper

    # Directories

    def lookup(self, task: Task, name: bytes) -> Inode | None:
        upper = self.upper.lookup(task, name) if self.upper is not None else None
        if upper is not None:
            if is_whiteout(upper):
                return None
            if not stat.S_ISDIR(upper.mode) or is_opaque(task, upper):
                return self.fs.inode_of(self, name, upper, self._origin(task, upper))
        lower = self._lower_children(task, name)
        if upper is not None:
            return self.fs.inode_of(self, name, upper, [part for part in lower if stat.S_ISDIR(part.mode)])
        return self.fs.inode_of(self, name, None, lower) if lower else None

    def _origin(self, task: Task, upper: Inode) -> list[Inode]:
        """What an upper file was copied from, as long as that is known."""
        known = self.fs.inodes.get(id(upper))
        return known.lower if known is not None and known.upper is upper else []

    def _lower_children(self, task: Task, name: bytes) -> list[Inode]:
        """`name` in the lower layers: one file, or the directories that are merged."""
        found: list[Inode] = []
        for layer in self.lower:
            child = layer.lookup(task, name)
            if child is None:
                continue
            if is_whiteout(child) or (found and not stat.S_ISDIR(child.mode)):
                break
            found.append(child)
            if not stat.S_ISDIR(child.mode) or is_opaque(task, child):
                break
        return found

    def iterate(self, task: Task, offset: int) -> Iterator[Entry]:
        names: dict[bytes, Entry | None] = {}
        for layer in ([self.upper] if self.upper is not None else []) + self.lower:
            for entry in layer.iterate(task, 0):
                if entry.name not in names:
                    hidden = entry.kind == DT_CHR and self._is_hidden(task, layer, entry.name)
                    names[entry.name] = None if hidden else entry
        for position, (name, found) in enumerate(sorted(names.items()), 3):
            if found is not None and position > offset:
                yield Entry(name, found.ino, found.kind, position)

    @staticmethod
    def _is_hidden(task: Task, layer: Inode, name: bytes) -> bool:
        inode = layer.lookup(task, name)
        return inode is not None and is_whiteout(inode)

    def _clear(self, task: Task, directory: Inode, name: bytes) -> bool:
        """Take away a whiteout in the upper directory; was there one?"""
        old = directory.lookup(task, name)
        if old is None or not is_whiteout(old):
            return False
        directory.unlink(task, name, old)
        return True

    def _made(self, task: Task, name: bytes, upper: Inode, covers: bool) -> Inode:
        if covers and stat.S_ISDIR(upper.mode):
            upper.setxattr(task, OPAQUE, b"y", 0)
        self.take()
        return self.fs.inode_of(self, name, upper, [])

    def create(self, task: Task, name: bytes, mode: int) -> Inode:
        directory = self.copy_up()
        covers = self._clear(task, directory, name)
        return self._made(task, name, directory.create(task, name, mode), covers)

    def mkdir(self, task: Task, name: bytes, mode: int) -> Inode:
        directory = self.copy_up()
        covers = self._clear(task, directory, name)
        return self._made(task, name, directory.mkdir(task, name, mode), covers)

    def mknod(self, task: Task, name: bytes, mode: int, rdev: int) -> Inode:
        if stat.S_ISCHR(mode) and rdev == 0:
            raise SysError(errno.EPERM, "it would be a whiteout")
        directory = self.copy_up()
        covers = self._clear(task, directory, name)
        return self._made(task, name, directory.mknod(task, name, mode, rdev), covers)

    def symlink(self, task: Task, name: bytes, target: bytes) -> Inode:
        directory = self.copy_up()
        covers = self._clear(task, directory, name)
        return self._made(task, name, directory.symlink(task, name, target), covers)

    def link(self, task: Task, name: bytes, target: Inode) -> None:
        assert isinstance(target, OverlayInode)
        upper = target.copy_up()
        directory = self.copy_up()
        self._clear(task, directory, name)
        directory.link(task, name, upper)
        target.take()
        self.take()

    def _hide(self, task: Task, directory: Inode, name: bytes) -> None:
        """Have a name that a lower layer has read as absent."""
        if self._lower_children(task, name):
            directory.mknod(task, name, stat.S_IFCHR, 0)

    def unlink(self, task: Task, name: bytes, child: Inode) -> None:
        assert isinstance(child, OverlayInode)
        directory = self.copy_up()
        if child.upper is not None and directory.lookup(task, name) is not None:
            directory.unlink(task, name, child.upper)
            child.take()
        else:
            child.nlink = max(child.nlink - 1, 0)
        self._hide(task, directory, name)
        self.take()

    def rmdir(self, task: Task, name: bytes, child: Inode) -> None:
        assert isinstance(child, OverlayInode)
        if any(True for _ in child.iterate(task, 0)):
            raise SysError(errno.ENOTEMPTY)
        directory = self.copy_up()
        if child.upper is not None:
            child.drop_whiteouts(task)
            directory.rmdir(task, name, child.upper)
        child.nlink = 0
        self._hide(task, directory, name)
        self.take()

    def drop_whiteouts(self, task: Task) -> None:
        """Empty the upper part of a directory that shows nothing."""
        assert self.upper is not None
        for entry in list(self.upper.iterate(task, 0)):
            inode = self.upper.lookup(task, entry.name)
            if inode is not None:
                self.upper.unlink(task, entry.name, inode)

    def rename(
        self, task: Task, name: bytes, child: Inode, target: Inode, new_name: bytes, replaced: Inode | None, flags: int
    ) -> None:
        assert isinstance(child, OverlayInode)
        assert isinstance(target, OverlayInode)
        self._check_rename(task, child, replaced, flags)
        source, destination = self.copy_up(), target.copy_up()
        upper = child.copy_up()
        other = replaced.copy_up() if flags & RENAME_EXCHANGE and isinstance(replaced, OverlayInode) else None
        if other is None:
            other = self._make_way(task, target, destination, new_name, replaced)
        covers = bool(target._lower_children(task, new_name))
        source.rename(task, name, upper, destination, new_name, other, flags & RENAME_EXCHANGE)
        if not flags & RENAME_EXCHANGE:
            self._hide(task, source, name)
        if covers and stat.S_ISDIR(upper.mode):
            upper.setxattr(task, OPAQUE, b"y", 0)
        if isinstance(replaced, OverlayInode):
            if flags & RENAME_EXCHANGE:
                replaced.parent, replaced.name = self, name
            else:
                replaced.nlink = 0 if stat.S_ISDIR(replaced.mode) else max(replaced.nlink - 1, 0)
        child.parent, child.name = target, new_name
        for inode in (child, self, target):
            inode.take()

    @staticmethod
    def _check_rename(task: Task, child: OverlayInode, replaced: Inode | None, flags: int) -> None:
        if flags & RENAME_WHITEOUT:
            raise SysError(errno.EINVAL, "RENAME_WHITEOUT")
        for inode in (child, replaced if flags & RENAME_EXCHANGE else None):
            if isinstance(inode, OverlayInode) and stat.S_ISDIR(inode.mode) and inode.lower:
                raise SysError(errno.EXDEV, "the directory has a lower part")
        covered = replaced if not flags & RENAME_EXCHANGE else None
        if covered is not None and stat.S_ISDIR(covered.mode) and any(True for _ in covered.iterate(task, 0)):
            raise SysError(errno.ENOTEMPTY)

    @staticmethod
    def _make_way(
        task: Task, target: OverlayInode, directory: Inode, name: bytes, replaced: Inode | None
    ) -> Inode | None:
        """What the upper layer's rename replaces."""
        target._clear(task, directory, name)
        if isinstance(replaced, OverlayInode) and replaced.upper is not None:
            if stat.S_ISDIR(replaced.mode):
                replaced.drop_whiteouts(task)
            return replaced.upper
        return None

    def tmpfile(self, task: Task, mode: int) -> Inode:
        return self._made(task, b"", self.copy_up().tmpfile(task, mode), False)

    # Links and contents

    def readlink(self, task: Task) -> bytes:
        return self.real.readlink(task)

    def open(self, task: Task, path: Path, flags: int) -> OpenFile:
        if stat.S_ISREG(self.mode) and flags & O_ACCMODE != O_RDONLY:
            self.copy_up(keep=0 if flags & O_TRUNC else None)
        return self.real.open(task, path, flags)

    # Extended attributes

    def _check_xattr(self, name: bytes) -> None:
        if name.startswith(PRIVATE):
            raise SysError(errno.EOPNOTSUPP, "the overlay's own attributes")

    def getxattr(self, task: Task, name: bytes) -> bytes:
        self._check_xattr(name)
        return self.real.getxattr(task, name)

    def setxattr(self, task: Task, name: bytes, value: bytes, flags: int) -> None:
        self._check_xattr(name)
        self.copy_up().setxattr(task, name, value, flags)
        self.take()

    def listxattr(self, task: Task) -> list[bytes]:
        return [name for name in self.real.listxattr(task) if not name.startswith(PRIVATE)]

    def removexattr(self, task: Task, name: bytes) -> None:
        self._check_xattr(name)
        self.copy_up().removexattr(task, name)
        self.take()
