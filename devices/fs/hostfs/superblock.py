"""The file system itself: its root directory's descriptor, and which inodes are in use."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from devices.errors import SysError, host_errno
from devices.fs.hostfs.host import (
    DIRECTORY_FLAGS,
    LISTING_BUFFER,
    filesystem_type,
    raise_limit,
    sync_filesystem,
)
from devices.vfs.inode import SB_NOATIME, SB_RDONLY, StatFs, SuperBlock

if TYPE_CHECKING:
    from devices.fs.hostfs.contents import HostContents
    from devices.fs.hostfs.inode import HostInode
    from devices.fs.hostfs.sidecar import Sidecar
    from devices.memory.pagecache import PageCache

PSEUDO = {
    0x9FA0: "proc", 0x62656572: "sysfs", 0x1CD1: "devpts", 0x27E0EB: "cgroup", 0x63677270: "cgroup2",
    0x64626720: "debugfs", 0x74726163: "tracefs", 0x73636673: "securityfs", 0xCAFE4A11: "bpf", 0x19800202: "mqueue",
    0x958458F6: "hugetlbfs", 0x65735543: "fusectl", 0x62656570: "configfs", 0xDE5E81E4: "efivarfs",
    0x42494E4D: "binfmt_misc", 0x6E736673: "nsfs", 0x67596969: "rpc_pipefs", 0x0187: "autofs", 0xF97CFF8C: "selinux",
    0x43415D53: "smack", 0x6165676C: "pstore",
}  # fmt: skip
"""f_type of file systems that are the host kernel's own affairs (<linux/magic.h>)."""
DEVICE_SHIFT = 42
"""Inode numbers of the host's other file systems below the root have a number for it from this bit on."""
DEVICES = 256

Key = tuple[int, int]
"""(st_dev, st_ino)."""


class HostFs(SuperBlock):
    """The host's directory or file `path`, opened by the monitor's user; `attributes`: the path of the file that is
    beside a layer (sidecar.py). OSError when they cannot be."""

    fstype = b"hostfs"
    magic = 0x00C0FFEE
    """HOSTFS_SUPER_MAGIC of user-mode Linux."""

    def __init__(self, dev: int, path: bytes, *, read_only: bool, attributes: bytes | None = None) -> None:
        from devices.fs.hostfs.inode import inode_of

        super().__init__(dev, path, SB_NOATIME | (SB_RDONLY if read_only else 0))  # the host keeps its own rules
        self.read_only = read_only
        """As the person said; `flags` may be more strict."""
        self.limit = raise_limit()
        self.inodes: WeakValueDictionary[Key, HostInode] = WeakValueDictionary()
        self.orphans: dict[Key, tuple[HostContents, PageCache]] = {}
        """Page caches that have outlived their inode, because pages are mapped or nobody could free them then."""
        self.buffer = ctypes.create_string_buffer(LISTING_BUFFER)
        """For directories that are read."""
        self._devices: dict[int, int] = {}
        self._others: dict[Key, int] = {}
        self.owns_files = os.geteuid() == 0
        """May the monitor give new files to whom the guest says they belong to?"""
        self.sidecar: Sidecar | None = self._load(attributes) if attributes is not None else None
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        host = os.fstat(fd)
        kind = PSEUDO.get(filesystem_type(fd))
        if kind is not None or stat.S_IFMT(host.st_mode) not in (stat.S_IFDIR, stat.S_IFREG):
            os.close(fd)
            raise OSError(errno.EINVAL, f"belongs to the host's kernel ({kind})" if kind else "is a special file", path)
        self._devices[host.st_dev] = 0
        self.top = inode_of(self, fd, host, self.sidecar.root if self.sidecar is not None else None)
        self.root = self.top

    @staticmethod
    def _load(attributes: bytes) -> Sidecar:
        from devices.fs.hostfs.sidecar import Sidecar

        try:
            return Sidecar(attributes)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OSError(errno.EINVAL, f"is damaged ({error})", attributes) from error

    def ino_of(self, dev: int, ino: int) -> int:
        """The guest's inode number: the host's, told apart where several host file systems are below the root."""
        number = self._devices.setdefault(dev, len(self._devices))
        if not number:
            return ino
        if number < DEVICES and not ino >> DEVICE_SHIFT:
            return number << DEVICE_SHIFT | ino
        return self._others.setdefault((dev, ino), DEVICES << DEVICE_SHIFT | len(self._others))

    def is_first(self, dev: int) -> bool:
        """Are inode numbers of this host file system the host's own?"""
        return self._devices.get(dev) == 0

    def check_writable(self) -> None:
        if self.read_only or self.flags & SB_RDONLY:
            raise SysError(errno.EROFS, "the host's directory is mounted read-only")

    def hides(self, fd: int) -> bool:
        """Is this a file of a kernel's own file system, which the guest must not see?"""
        return filesystem_type(fd) in PSEUDO

    def reap(self) -> None:
        """Free the orphans that nothing maps any more. Needs the kernel lock."""
        for key, (contents, cache) in list(self.orphans.items()):
            if not cache.mappings:
                cache.close()
                contents.close()
                del self.orphans[key]

    def statfs(self) -> StatFs:
        with host_errno():
            host = os.fstatvfs(self.top.fd)
        return StatFs(
            self.magic, host.f_bsize, host.f_blocks, host.f_bfree, host.f_bavail, host.f_files, host.f_ffree, self.dev,
            host.f_namemax,
        )  # fmt: skip

    def remount(self, flags: int, data: dict[bytes, bytes]) -> None:
        """What a person mounted read-only stays so."""
        if self.read_only and not flags & SB_RDONLY:
            raise SysError(errno.EROFS, "the host's directory was given read-only")
        super().remount(flags | SB_NOATIME, data)

    def write_back(self) -> None:
        """Give the host what mappings have written."""
        for _, cache in list(self.orphans.values()):
            cache.write_back()
        for inode in list(self.inodes.values()):
            if inode.cache is not None:
                inode.cache.write_back()

    def sync(self) -> None:
        if self.read_only:
            return
        self.write_back()
        with host_errno():
            if stat.S_ISDIR(self.top.mode):
                fd = os.open(self.top.by_descriptor, DIRECTORY_FLAGS)
                try:
                    sync_filesystem(fd)
                finally:
                    os.close(fd)
            elif self.top.contents is not None and self.top.contents.writer >= 0:
                os.fsync(self.top.contents.writer)

    def shutdown(self) -> None:
        self.write_back()
        self.reap()
        for inode in list(self.inodes.values()):
            inode.close()
