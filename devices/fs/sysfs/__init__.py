"""sysfs: the machine's hardware as files, as far as programs read it: CPUs, caches, the memory node, loopback.

superblock.py is the file system, tree.py has the tables.
Follows drivers/base/cpu.c, cacheinfo.c, node.c, topology.c, and Documentation/ABI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.vfs.mount import FileSystemType

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.inode import SuperBlock


def mount(kernel: Kernel, task: Task | None, source: bytes, flags: int, data: bytes) -> SuperBlock:
    """mount -t sysfs; options are ignored, as Linux does."""
    from devices.fs.sysfs.superblock import SysFs

    return SysFs(kernel, source or b"sysfs", flags)


FILE_SYSTEMS = (FileSystemType(b"sysfs", mount),)
