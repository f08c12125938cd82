"""The file system itself: its root directory's descriptor, and which inodes are in use."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from devices.errors import SysError, host_errno
from devices.vfs.inode import SB_RDONLY, StatFs, SuperBlock

if TYPE_CHECKING:
    from devices.fs.hostfs.inode import HostInode

PSEUDO = {
    0x9FA0: "proc", 0x62656572: "sysfs", 0x1CD1: "devpts", 0x27E0EB: "cgroup", 0x63677270: "cgroup2",
    0x64626720: "debugfs", 0x74726163: "tracefs", 0x73636673: "securityfs", 0xCAFE4A11: "bpf", 0x19800202: "mqueue",
    0x958458F6: "hugetlbfs", 0x65735543: "fusectl", 0x62656570: "configfs", 0xDE5E81E4: "efivarfs",
    0x42494E4D: "binfmt_misc", 0x6E736673: "nsfs", 0x67596969: "rpc_pipefs", 0x0187: "autofs", 0xF97CFF8C: "selinux",
    0x43415D53: "smack", 0x6165676C: "pstore",
}  # fmt: skip
"""f_type of file systems that are the host kernel's own affairs (<linux/magic.h>)."""
STATFS_SIZE = 120


def filesystem_type(fd: int) -> int:
    """f_type of what a descriptor is on; os.fstatvfs does not tell it."""
    buffer = ctypes.create_string_buffer(STATFS_SIZE)
    if ctypes.CDLL(None, use_errno=True).fstatfs(fd, buffer):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int.from_bytes(buffer.raw[:8], "little") & 0xFFFF_FFFF


class HostFs(SuperBlock):
    """The host's directory `path`, opened by the monitor's user. OSError when it cannot be."""

    fstype = b"hostfs"
    magic = 0x00C0FFEE
    """HOSTFS_SUPER_MAGIC of user-mode Linux."""

    def __init__(self, dev: int, path: bytes, *, read_only: bool) -> None:
        from devices.fs.hostfs.inode import inode_of

        super().__init__(dev, path, SB_RDONLY if read_only else 0)
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        self.inodes: WeakValueDictionary[tuple[int, int], HostInode] = WeakValueDictionary()
        self._inos: dict[tuple[int, int], int] = {}
        self.owns_files = os.geteuid() == 0
        """May the monitor give new files to whom the guest says they belong to?"""
        self.root = inode_of(self, fd, os.fstat(fd))

    @property
    def read_only(self) -> bool:
        return bool(self.flags & SB_RDONLY)

    def ino_of(self, host: os.stat_result) -> int:
        """The guest's inode number: the host's, told apart where several host file systems are below the root."""
        if host.st_dev == self._root_dev:
            return host.st_ino
        return self._inos.setdefault((host.st_dev, host.st_ino), (1 << 48) + len(self._inos))

    @property
    def _root_dev(self) -> int:
        root = getattr(self, "root", None)
        return root.host_dev if root is not None else -1

    def check_writable(self) -> None:
        if self.read_only:
            raise SysError(errno.EROFS, "the host's directory is mounted read-only")

    def hides(self, fd: int, host: os.stat_result, parent: HostInode) -> bool:
        """Is this the root of a kernel's own file system, which the guest must not see?"""
        if host.st_dev == parent.host_dev or not stat.S_ISDIR(host.st_mode):
            return False
        return filesystem_type(fd) in PSEUDO

    def statfs(self) -> StatFs:
        with host_errno():
            host = os.fstatvfs(self.root.fd)  # type: ignore[attr-defined]  # the root is a HostInode
        return StatFs(
            self.magic, host.f_frsize, host.f_blocks, host.f_bfree, host.f_bavail, host.f_files, host.f_ffree, self.dev
        )

    def options(self) -> bytes:
        return b""

    def remount(self, flags: int, data: dict[bytes, bytes]) -> None:
        """What a person mounted read-only stays so."""
        if self.read_only and not flags & SB_RDONLY:
            raise SysError(errno.EROFS, "the host's directory was given read-only")
        super().remount(flags, data)

    def sync(self) -> None:
        for inode in list(self.inodes.values()):
            inode.write_back()

    def shutdown(self) -> None:
        self.sync()
        for inode in list(self.inodes.values()):
            inode.close()
