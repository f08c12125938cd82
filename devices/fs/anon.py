"""anon_inodefs: the one inode behind files that are nothing but an open file description (fs/anon_inodes.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.fs.internal import internal_mount_of
from devices.vfs.inode import Inode, StatFs, SuperBlock
from devices.vfs.mount import unnamed_path

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.vfs.path import Dentry, Path

ANON_INODE_FS_MAGIC = 0x09041934


class AnonFs(SuperBlock):
    fstype = b"anon_inodefs"
    magic = ANON_INODE_FS_MAGIC

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.new_dev_locked(), b"anon_inodefs")
        self.root = Inode(self, 1, 0o600)

    def statfs(self) -> StatFs:
        return StatFs(self.magic, 4096, 0, 0, 0, 0, 0, self.dev)

    def name_of(self, dentry: Dentry) -> bytes | None:
        return dentry.name


def anonymous_path(kernel: Kernel, name: bytes) -> Path:
    """Where a file is that has no other place: shown as `anon_inode:NAME`, of which `NAME` has its brackets."""
    mount = internal_mount_of(kernel, AnonFs.fstype, lambda: AnonFs(kernel))
    return unnamed_path(mount, mount.sb.root, b"anon_inode:" + name)
