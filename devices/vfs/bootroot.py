"""The tree of a machine that booted a bare ELF file: that file at its path, and what /proc/self/exe is. Read-only.

Also the empty rootfs that every root file system is mounted on.
"""

from __future__ import annotations

import errno
import os
from stat import S_IFDIR, S_IFLNK
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.fs.hostfile import HostFile
from devices.vfs.inode import SB_RDONLY, Entry, Inode, StatFs, SuperBlock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.fs.hostfile import HostFileBacking
    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.path import Path

RAMFS_MAGIC = 0x858458F6
DT_DIR, DT_REG, DT_LNK = 4, 8, 10


class BootRoot(SuperBlock):
    """Holds the files that the machine has booted so far, found anew by each lookup."""

    fstype = b"rootfs"
    magic = RAMFS_MAGIC

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.new_dev_locked(), b"rootfs", SB_RDONLY)
        self.kernel = kernel
        self.root = Directory(self, b"")
        self._inodes: dict[bytes, Inode] = {b"": self.root}

    def statfs(self) -> StatFs:
        return StatFs(self.magic, 4096, 0, 0, 0, 0, 0, self.dev)

    def paths(self, task: Task | None) -> dict[bytes, HostFileBacking | None]:
        """What is there: the booted files, and a link to the one that the process runs (None)."""
        image = self.kernel.image
        found: dict[bytes, HostFileBacking | None] = {}
        if image is not None:
            found[image.path] = image
            found[b"/proc/self/exe"] = None
        return found

    def at(self, path: bytes, task: Task) -> Inode | None:
        """The inode at an absolute path, if the tree has it."""
        known = self._inodes.get(path)
        if known is not None and not isinstance(known, File):
            return known
        paths = self.paths(task)
        inode: Inode
        if path in paths:
            image = paths[path]
            if isinstance(known, File) and known.image is image:
                return known
            inode = Link(self, len(self._inodes) + 1) if image is None else File(self, len(self._inodes) + 1, image)
        elif any(other.startswith(path + b"/") for other in paths):
            inode = Directory(self, path)
        else:
            return None
        self._inodes[path] = inode
        return inode


class Directory(Inode):
    """The root, and what leads to a booted file."""

    cacheable = False

    def __init__(self, sb: BootRoot, path: bytes) -> None:
        super().__init__(sb, len(getattr(sb, "_inodes", ())) + 1, S_IFDIR | 0o755)
        self.tree = sb
        self.path = path
        self.nlink = 2

    def lookup(self, task: Task, name: bytes) -> Inode | None:
        return self.tree.at(self.path + b"/" + name, task)

    def iterate(self, task: Task, offset: int) -> Iterator[Entry]:
        below = self.path + b"/"
        names = {path[len(below) :].split(b"/")[0] for path in self.tree.paths(task) if path.startswith(below)}
        for position, name in enumerate(sorted(names), 3):
            inode = self.tree.at(below + name, task)
            if inode is not None and position > offset:
                yield Entry(name, inode.ino, inode.mode >> 12, position)


class File(Inode):
    """A booted file."""

    def __init__(self, sb: SuperBlock, ino: int, image: HostFileBacking) -> None:
        host = os.fstat(image.fd)
        super().__init__(sb, ino, host.st_mode, host.st_uid, host.st_gid)
        self.image = image
        self.size, self.nlink = host.st_size, host.st_nlink
        self.atime, self.mtime, self.ctime = host.st_atime_ns, host.st_mtime_ns, host.st_ctime_ns

    def open(self, task: Task, path: Path, flags: int) -> OpenFile:
        return HostFile(self.image, flags)


class Link(Inode):
    """/proc/self/exe."""

    def __init__(self, sb: SuperBlock, ino: int) -> None:
        super().__init__(sb, ino, S_IFLNK | 0o777)

    def readlink(self, task: Task) -> bytes:
        if not task.process.exe:
            raise SysError(errno.ENOENT, "it runs no file")
        return task.process.exe


def rootfs(kernel: Kernel) -> SuperBlock:
    """What is below every root: a directory with nothing in it."""
    return Empty(kernel)


class Empty(BootRoot):
    def paths(self, task: Task | None) -> dict[bytes, HostFileBacking | None]:
        return {}
