"""The file system of /dev: a tmpfs that has the machine's devices in it."""

from __future__ import annotations

from stat import S_IFCHR
from typing import TYPE_CHECKING

from devices.fs.chardev import (
    CONSOLE,
    FULL,
    KMSG,
    MEM_MAJOR,
    NULL,
    RANDOM,
    TTY,
    TTYAUX_MAJOR,
    URANDOM,
    ZERO,
    install,
)
from devices.fs.tmpfs.inode import Directory, Special, Symlink
from devices.fs.tmpfs.superblock import Options, Tmpfs, parse_options, split_options
from devices.vfs.abi import makedev
from vmm.layout import PAGE_SIZE

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.task.task import Task

NODES = (
    (b"null", 0o666, MEM_MAJOR, NULL), (b"zero", 0o666, MEM_MAJOR, ZERO), (b"full", 0o666, MEM_MAJOR, FULL),
    (b"random", 0o666, MEM_MAJOR, RANDOM), (b"urandom", 0o666, MEM_MAJOR, URANDOM),
    (b"kmsg", 0o644, MEM_MAJOR, KMSG), (b"tty", 0o666, TTYAUX_MAJOR, TTY), (b"console", 0o600, TTYAUX_MAJOR, CONSOLE),
)  # fmt: skip
DIRECTORIES = ((b"pts", 0o755), (b"shm", 0o1777), (b"mqueue", 0o1777))
"""What is mounted on."""
LINKS = (
    (b"fd", b"/proc/self/fd"), (b"stdin", b"/proc/self/fd/0"), (b"stdout", b"/proc/self/fd/1"),
    (b"stderr", b"/proc/self/fd/2"),
)  # fmt: skip


class DevTmpfs(Tmpfs):
    fstype = b"devtmpfs"
    default_mode = 0o755

    def __init__(self, kernel: Kernel, source: bytes, flags: int, options: Options | None = None) -> None:
        super().__init__(kernel, source, flags, options)
        install(kernel.vfs)
        top = self._top
        for name, mode, major, minor in NODES:
            top._add(name, Special(self, S_IFCHR | mode, 0, 0, makedev(major, minor)))
        for name, mode in DIRECTORIES:
            top._add(name, Directory(self, mode, 0, 0))
            top.nlink += 1
        for name, target in LINKS:
            top._add(name, Symlink(self, target, 0, 0))


def mount(kernel: Kernel, task: Task | None, source: bytes, flags: int, data: bytes) -> DevTmpfs:
    """mount -t devtmpfs, with tmpfs's options. Each mount has its own tree, unlike Linux, where all show one."""
    options = parse_options(split_options(data), kernel.memory.total * PAGE_SIZE)
    return DevTmpfs(kernel, source or b"devtmpfs", flags, options)
