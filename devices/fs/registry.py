"""The file systems that mount(2) knows, by name; their modules are imported when they are asked for."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.vfs.mount import FileSystemType

MODULES = {
    b"tmpfs": "devices.fs.tmpfs",
    b"ramfs": "devices.fs.tmpfs",
    b"proc": "devices.fs.procfs",
    b"sysfs": "devices.fs.sysfs",
    b"devtmpfs": "devices.fs.devfs",
}
"""Each module has FILE_SYSTEMS, the FileSystemTypes that it makes."""


def find_filesystem(kernel: Kernel, name: bytes) -> FileSystemType:
    """The file system `name`. SysError(ENODEV) for one that is not there."""
    if name not in kernel.filesystems:
        module = MODULES.get(name)
        if module is None:
            raise SysError(errno.ENODEV, f"no file system {name!r}")
        for found in __import__(module, fromlist=["FILE_SYSTEMS"]).FILE_SYSTEMS:
            kernel.filesystems[found.name] = found
    return kernel.filesystems[name]
