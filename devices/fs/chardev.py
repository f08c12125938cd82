"""Character devices by number: which of the machine's own devices a device file opens, on whatever file system it is.

A device file of the host, an image or a program's own mknod means the guest's device of that number, never the host's.
What is not in `vfs.devices` cannot be opened (ENXIO, Inode.open()).
"""

from __future__ import annotations

from stat import S_IFCHR
from typing import TYPE_CHECKING

from devices.vfs.abi import makedev

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.path import Path
    from devices.vfs.state import Opener, Vfs

MEM_MAJOR, TTYAUX_MAJOR = 1, 5
NULL, ZERO, FULL, RANDOM, URANDOM, KMSG = 3, 5, 7, 8, 9, 11
TTY, CONSOLE = 0, 1


def register(vfs: Vfs, major: int, minor: int, opener: Opener) -> None:
    """Let character device `major`:`minor` be opened by `opener`."""
    vfs.devices[S_IFCHR, makedev(major, minor)] = opener


def install(vfs: Vfs) -> None:
    """The devices of every machine (drivers/char/mem.c, drivers/char/random.c, kernel/printk); may be repeated."""
    for minor in (NULL, ZERO, FULL, RANDOM, URANDOM, KMSG):
        vfs.devices.setdefault((S_IFCHR, makedev(MEM_MAJOR, minor)), _open_memory)
    for minor in (TTY, CONSOLE):
        vfs.devices.setdefault((S_IFCHR, makedev(TTYAUX_MAJOR, minor)), _open_console)


def _open_memory(task: Task, path: Path, flags: int) -> OpenFile:
    from devices.fs.devfs.memory import open_memory

    return open_memory(task, path.inode.rdev & 0xFF, flags)


def _open_console(task: Task, path: Path, flags: int) -> OpenFile:
    from devices.fs.devfs.console import open_console

    return open_console(task, path.inode.rdev & 0xFF, flags)
