"""devtmpfs: /dev with the machine's own devices, in memory like a tmpfs (drivers/base/devtmpfs.c).

superblock.py  the file system     memory.py  null, zero, full, random, urandom, kmsg
console.py     console, tty, and the machine's standard streams
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.vfs.mount import FileSystemType

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.inode import SuperBlock


def mount(kernel: Kernel, task: Task | None, source: bytes, flags: int, data: bytes) -> SuperBlock:
    from devices.fs.devfs.superblock import mount

    return mount(kernel, task, source, flags, data)


FILE_SYSTEMS = (FileSystemType(b"devtmpfs", mount),)
