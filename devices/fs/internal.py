"""File systems that are mounted nowhere, for files without a name: pipes, memfds (kern_mount())."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.vfs.mount import internal_mount

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.kernel import Kernel
    from devices.vfs.inode import SuperBlock
    from devices.vfs.mount import Mount


def internal_mount_of(kernel: Kernel, name: bytes, make: Callable[[], SuperBlock]) -> Mount:
    """The machine's internal mount of this name; `make` makes its file system when it is first needed."""
    mounts = kernel.vfs.internal_mounts
    mount = mounts.get(name)
    if mount is None:
        mount = mounts[name] = internal_mount(kernel.vfs, make())
    return mount
