"""The file system of /sys."""

from __future__ import annotations

from stat import S_IFDIR
from typing import TYPE_CHECKING

from devices.fs.pseudo import PseudoFs, TableDirectory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from devices.fs.pseudo import Node
    from devices.kernel import Kernel

SYSFS_MAGIC = 0x62656572


class SysFs(PseudoFs):
    fstype = b"sysfs"
    magic = SYSFS_MAGIC

    def __init__(self, kernel: Kernel, source: bytes, flags: int) -> None:
        super().__init__(kernel, source, flags)
        self.root = TableDirectory(self, self.new_inos(1), S_IFDIR | 0o555, top)


def top(fs: PseudoFs) -> Mapping[bytes, Node]:
    """Imported when somebody looks into /sys."""
    from devices.fs.sysfs.tree import ROOT

    return ROOT
