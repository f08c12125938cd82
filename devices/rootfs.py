"""The root file system of a machine that boots an image: read-only layers under one in memory, and what is mounted.

    /            an overlay: the image's layers (host directories, read-only) below, a tmpfs on top
    /proc /sys   the guest's own
    /dev         the guest's own devices, with a tmpfs on /dev/shm
    --mount      directories or files of the host: `ro`, `rw` (the host's own files change) or `overlay` (the guest may
                 write, the host does not see it)
    --tmpfs      empty directories in memory

Nothing of the host changes but what is mounted `rw`.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from devices.errors import SysError
from devices.fs.chardev import install
from devices.fs.devfs.console import attach_streams_locked
from devices.fs.hostfs import HostFs
from devices.fs.overlayfs import OverlayFs
from devices.vfs.abi import AT_FDCWD
from devices.vfs.mount import Mount, attach_tree, set_root_locked
from devices.vfs.mount_abi import MNT_NODEV, MNT_NOEXEC, MNT_NOSUID, MNT_READONLY, MNT_RELATIME
from devices.vfs.names import make_directory, make_node
from devices.vfs.path import LOOKUP_FOLLOW, root_dentry, walk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.inode import Inode, SuperBlock

S_IFREG = 0o100000


class MountSpec(NamedTuple):
    """Something of the host in the guest: `mode` is ro, rw or overlay."""

    source: bytes
    target: bytes
    mode: str


class RootFs:
    """What `kernel.root` is. OSError when a directory of the host cannot be opened."""

    def __init__(
        self,
        kernel: Kernel,
        layers: Sequence[bytes],
        *,
        read_only: bool = False,
        mounts: Sequence[MountSpec] = (),
        tmpfs: Sequence[bytes] = (),
        attributes: Sequence[bytes | None] = (),
    ) -> None:
        """`attributes`: for each layer the file that is beside it (devices/fs/hostfs/sidecar.py), or None."""
        self._kernel = kernel
        self._read_only = read_only
        self._tmpfs = tmpfs
        self._mounted = False
        self._filesystems: list[SuperBlock] = []
        with kernel.lock:
            beside = [*attributes, *[None] * (len(layers) - len(attributes))]
            lower = [self._host_locked(path, True, file).root for path, file in zip(layers, beside, strict=True)]
            self.upper = self._memory_locked(0o755)
            root = OverlayFs(kernel, lower, self.upper.root)
            self._root = set_root_locked(kernel, root)
            self._mounts = [(spec.target, *self._filesystem_of(spec)) for spec in mounts]
            install(kernel.vfs)

    def _host_locked(self, path: bytes, read_only: bool, attributes: bytes | None = None) -> HostFs:
        made = HostFs(self._kernel.new_dev_locked(), path, read_only=read_only, attributes=attributes)
        self._filesystems.append(made)
        return made

    def _memory_locked(self, mode: int) -> SuperBlock:
        from devices.fs.tmpfs import make_tmpfs

        return make_tmpfs(self._kernel, mode=mode)

    def mount_locked(self, task: Task, stdio: tuple[int, int, int]) -> None:
        """Mount what belongs into the tree on behalf of the machine's first task, and give its streams their places."""
        if self._mounted:
            return
        self._mounted = True
        own = MNT_NOSUID | MNT_NODEV | MNT_NOEXEC | MNT_RELATIME
        self._mount(task, b"/proc", self._own(b"proc"), own)
        self._mount(task, b"/sys", self._own(b"sysfs"), own)
        self._mount(task, b"/dev", self._own(b"devtmpfs"), MNT_NOSUID | MNT_RELATIME)
        self._mount(task, b"/dev/shm", self._memory_locked(0o1777), MNT_NOSUID | MNT_NODEV | MNT_RELATIME)
        for target, sb, flags in self._mounts:
            self._mount(task, target, sb, flags)
        for target in self._tmpfs:
            self._mount(task, target, self._memory_locked(0o1777), MNT_NOSUID | MNT_NODEV | MNT_RELATIME)
        attach_streams_locked(task, stdio)
        if self._read_only:
            self._root.mount.flags |= MNT_READONLY

    def _own(self, name: bytes) -> SuperBlock:
        from devices.fs.registry import find_filesystem

        return find_filesystem(self._kernel, name).mount(self._kernel, None, name, 0, b"")

    def _filesystem_of(self, spec: MountSpec) -> tuple[SuperBlock, int]:
        host = self._host_locked(spec.source, spec.mode != "rw")
        flags = MNT_NOSUID | MNT_NODEV | MNT_RELATIME
        if spec.mode == "ro":
            return host, flags | MNT_READONLY
        if spec.mode == "rw":
            return host, flags
        return OverlayFs(self._kernel, [host.root], self._memory_locked(0o755).root), flags

    def _mount(self, task: Task, target: bytes, sb: SuperBlock, flags: int) -> None:
        make_place(task, target, sb.root)
        place = walk(task, AT_FDCWD, target, LOOKUP_FOLLOW)
        mount = Mount(self._kernel.vfs, sb, root_dentry(sb), flags, sb.source)
        attach_tree(self._kernel.vfs, mount, place.mount, place.dentry)

    def close_locked(self) -> None:
        """Nothing runs any more: what was written reaches the host, and its descriptors are given back."""
        for sb in self._filesystems:
            sb.shutdown()


def make_place(task: Task, target: bytes, what: Inode) -> None:
    """The directories, or the file, that something is mounted on, where they are missing."""
    parts = [part for part in target.split(b"/") if part]
    directories = parts if what.mode & 0o170000 != S_IFREG else parts[:-1]
    path = b""
    for part in directories:
        path += b"/" + part
        if not exists(task, path):
            make_directory(task, AT_FDCWD, path, 0o755)
    if directories is not parts and not exists(task, target):
        make_node(task, AT_FDCWD, target, S_IFREG | 0o644, 0)


def exists(task: Task, path: bytes) -> bool:
    try:
        walk(task, AT_FDCWD, path, LOOKUP_FOLLOW)
    except SysError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def parse_mount(text: str) -> MountSpec:
    """SRC:DST[:ro|rw|overlay] as --mount takes it. ValueError says what is wrong."""
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    mode = mode or "ro"
    if not source or not target:
        raise ValueError("it takes SRC:DST[:ro|rw|overlay]")
    if not target.startswith("/"):
        raise ValueError(f"{target} is not an absolute path")
    if mode not in ("ro", "rw", "overlay"):
        raise ValueError(f"{mode} is none of ro, rw, overlay")
    if not os.path.exists(source):
        raise ValueError(f"{source} does not exist")
    return MountSpec(os.fsencode(os.path.realpath(source)), os.fsencode(target), mode)
