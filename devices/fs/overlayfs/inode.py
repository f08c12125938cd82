"""A file of an overlay: which layers have it, its attributes and contents."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.fs.overlayfs.copy_up import copy_to
from devices.fs.overlayfs.superblock import PRIVATE, TEMPORARY, Copied, Links
from devices.vfs.abi import O_ACCMODE, O_RDONLY, O_TRUNC
from devices.vfs.inode import Inode

if TYPE_CHECKING:
    from devices.fs.overlayfs.superblock import OverlayFs
    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.path import Path

Place = tuple["OverlayInode", bytes]


class OverlayInode(Inode):
    """A file that is no directory, or the base of one: `upper` is what the upper layer has of it, `lower` what the
    others have (of a file one, of a directory all that are merged)."""

    __slots__ = ("fs", "links", "lower", "place", "upper")

    def __init__(self, sb: OverlayFs, place: Place | None, upper: Inode | None, lower: list[Inode]) -> None:
        real = upper if upper is not None else lower[0]
        copied = sb.copied.get(upper) if upper is not None else None
        ino = copied.ino if copied is not None else sb.number_of(lower[0] if lower else real)
        super().__init__(sb, ino, real.mode)
        self.fs = sb
        self.place = place
        """A name of it, where it goes when it is copied up: the directory and the name. None if none is known."""
        self.upper = upper
        self.lower = lower
        self.links: Links | None = copied.links if copied is not None else self._shared_links()
        """Who counts its names; None: the layer that has it."""
        self.take()

    def _shared_links(self) -> Links | None:
        return self.fs.links_of(self.lower[0]) if self.lower and not stat.S_ISDIR(self.lower[0].mode) else None

    @property
    def real(self) -> Inode:
        return self.upper if self.upper is not None else self.lower[0]

    def has(self, part: Inode) -> bool:
        return self.upper is part or (bool(self.lower) and self.lower[0] is part)

    # Attributes

    def take(self) -> None:
        real = self.real
        self.mode, self.uid, self.gid = real.mode, real.uid, real.gid
        self.rdev, self.size = real.rdev, real.size
        if self.links is not None:
            self.nlink = self.links.count
        else:
            self.nlink = 1 if stat.S_ISDIR(real.mode) else real.nlink
        self.atime, self.mtime, self.ctime, self.btime = real.atime, real.mtime, real.ctime, real.btime

    def refresh(self) -> None:
        self.real.refresh()
        self.take()

    @property
    def blocks(self) -> int:
        return self.real.blocks

    def touch(self, atime: int) -> None:
        """Reading copies nothing up: of a lower file it is kept until the attributes are asked for again."""
        self.atime = atime
        if self.upper is not None:
            self.upper.touch(atime)

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
        upper = self.copy_up(keep=size)
        upper.setattr(mode=mode, uid=uid, gid=gid, size=size, atime=atime, mtime=mtime, ctime=ctime)
        self.take()

    def truncate(self, size: int) -> None:
        self.setattr(size=size)

    # Names

    def name_gone(self, place: Place) -> None:
        """It has lost this name, in the upper layer as well if it had it there."""
        if stat.S_ISDIR(self.mode):
            self.links = Links(0)
        elif self.links is None and self.upper is None:
            self.links = self.fs.count_links(self.lower[0])
            self.links.count -= 1
        elif self.links is not None:
            self.links.count = max(self.links.count - 1, 0)
        if self.place == place:
            self.place = None
        self.take()

    def name_made(self, place: Place) -> None:
        if self.links is not None:
            self.links.count += 1
        self.place = place
        self.take()

    def released(self) -> None:
        """No name and no user is left."""
        links = self.links
        if links is not None and self.lower:
            key = (id(self.lower[0].sb), self.lower[0].ino)
            if self.fs.links.get(key) is links:
                del self.fs.links[key]
        if self.upper is not None and not self.upper.nlink:
            self.upper.released()

    # Copying up

    def copy_up(self, keep: int | None = None) -> Inode:
        """The file in the upper layer, made if it is not there; `keep`: bytes of its contents that will be needed."""
        if self.upper is not None:
            return self.upper
        fs = self.fs
        root = fs.upper_root
        if root is None:
            raise SysError(errno.EROFS, "the overlay has no upper layer")
        old = self.lower[0]
        old.refresh()
        if self.place is None:  # it is used without a name, and has none in the upper layer either
            upper = copy_to(fs.mounter, old, root, TEMPORARY, keep)
            times = {"atime": root.atime, "mtime": root.mtime, "ctime": root.ctime}
            (root.rmdir if stat.S_ISDIR(old.mode) else root.unlink)(fs.mounter, TEMPORARY, upper)
            root.setattr(**times)
        else:
            parent, name = self.place
            upper = copy_to(fs.mounter, old, parent.copy_up(), name, keep)
        if not stat.S_ISDIR(old.mode) and self.links is None and old.nlink > 1:
            self.links = fs.count_links(old)
        if self.links is not None:
            self.links.upper = upper
        fs.copied[upper] = Copied(self.ino, self.links)
        fs.inodes[id(upper)] = self
        self.upper = upper
        self.take()
        return upper

    # Links and contents

    def readlink(self, task: Task) -> bytes:
        return self.real.readlink(task)

    def open(self, task: Task, path: Path, flags: int) -> OpenFile:
        if not stat.S_ISREG(self.mode):
            return self.real.open(task, path, flags)
        if flags & O_ACCMODE != O_RDONLY:
            self.copy_up(keep=0 if flags & O_TRUNC else None)
        if self.upper is not None:
            return self.upper.open(task, path, flags)
        from devices.fs.overlayfs.file import LowerFile

        return LowerFile(self, self.lower[0].open(task, path, flags), path)

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
        if self.upper is None:
            self.real.getxattr(task, name)  # ENODATA copies nothing up
        self.copy_up().removexattr(task, name)
        self.take()
