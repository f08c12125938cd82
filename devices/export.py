"""--export: what the guest has changed in its root file system, written to a host directory.

The tree of the overlay's upper layer, as a layer of an OCI image has it: what was removed is an empty file `.wh.NAME`,
a directory that hides what was below has a `.wh..wh..opq`. Device nodes and sockets are left out. Names are created one
component at a time below the directory's descriptor; nothing is followed and nothing that exists is replaced.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, cast

from devices.fs.overlayfs.copy_up import Mounter, contents_of
from devices.fs.overlayfs.inode import is_opaque, is_whiteout

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.inode import Inode

BUFFER = 1 << 20
WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"


class Exporter:
    """Writes a tree. OSError for what the host refuses."""

    def __init__(self, kernel: Kernel) -> None:
        self._task = cast("Task", Mounter(kernel))
        self._owns = os.geteuid() == 0
        self.files = 0
        self.left_out: list[bytes] = []

    def write_locked(self, directory: Inode, target: bytes) -> None:
        """Write the contents of `directory` into the host's directory `target`, which is empty or is made."""
        os.makedirs(target, exist_ok=True)
        fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.listdir(fd):
                raise FileExistsError(17, "the directory is not empty", target)
            self._directory(directory, fd)
        finally:
            os.close(fd)

    def _directory(self, directory: Inode, fd: int) -> None:
        if is_opaque(self._task, directory):
            os.close(os.open(OPAQUE, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=fd))
        for entry in list(directory.iterate(self._task, 0)):
            inode = directory.lookup(self._task, entry.name)
            if inode is not None:
                self._entry(inode, entry.name, fd)

    def _entry(self, inode: Inode, name: bytes, parent: int) -> None:
        inode.refresh()
        kind = stat.S_IFMT(inode.mode)
        if is_whiteout(inode):
            os.close(os.open(WHITEOUT + name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=parent))
        elif kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=parent)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                self._directory(inode, fd)
                self._attributes(inode, fd)
            finally:
                os.close(fd)
        elif kind == stat.S_IFREG:
            self._regular(inode, name, parent)
        elif kind == stat.S_IFLNK:
            os.symlink(inode.readlink(self._task), name, dir_fd=parent)
        else:
            self.left_out.append(name)
            return
        self.files += 1

    def _regular(self, inode: Inode, name: bytes, parent: int) -> None:
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent)
        try:
            os.ftruncate(fd, inode.size)
            source = contents_of(inode)
            buffer = memoryview(bytearray(min(BUFFER, max(inode.size, 1))))
            done = 0
            while done < inode.size:
                count = source.read_into(buffer, done)
                if not count:
                    break
                written = 0
                while written < count:
                    written += os.pwrite(fd, buffer[written:count], done + written)
                done += count
            self._attributes(inode, fd)
        finally:
            os.close(fd)

    def _attributes(self, inode: Inode, fd: int) -> None:
        if self._owns:
            os.fchown(fd, inode.uid, inode.gid)
        os.fchmod(fd, stat.S_IMODE(inode.mode))
        os.utime(fd, ns=(inode.atime, inode.mtime))
