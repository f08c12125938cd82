"""What stands behind the descriptors of the new mount calls: detached mounts and file systems in the making."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.fs.anon import anonymous_path
from devices.vfs import mount_abi as ms
from devices.vfs.abi import O_PATH, O_RDWR
from devices.vfs.files import OpenFile, PathFile
from devices.vfs.mount import Mount, MountNamespace, unmount_tree_locked
from devices.vfs.path import Path

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.files import Segments
    from devices.vfs.inode import SuperBlock
    from devices.vfs.mount import FileSystemType
    from devices.vfs.state import Vfs

SUPERBLOCK_PARAMETERS = {
    b"ro": (ms.MS_RDONLY, 0), b"rw": (0, ms.MS_RDONLY),
    b"sync": (ms.MS_SYNCHRONOUS, 0), b"async": (0, ms.MS_SYNCHRONOUS),
    b"dirsync": (ms.MS_DIRSYNC, 0), b"lazytime": (ms.MS_LAZYTIME, 0), b"nolazytime": (0, ms.MS_LAZYTIME),
    b"mand": (ms.MS_MANDLOCK, 0), b"nomand": (0, ms.MS_MANDLOCK),
}  # fmt: skip
"""vfs_parse_sb_flag(): (flags set, flags cleared)."""

OPTIONS_MAX = 4094
"""Bytes of all parameters of a file system together (legacy_parse_param())."""


class TreeFile(PathFile):
    """A descriptor of open_tree(OPEN_TREE_CLONE) or fsmount: a place in a mount tree that is nowhere yet. What has not
    been moved anywhere goes with it."""

    def __init__(self, vfs: Vfs, tree: Mount) -> None:
        super().__init__(O_PATH)
        self._vfs = vfs
        self._tree = tree
        self._namespace = MountNamespace(vfs, tree, anonymous=True)
        self.attach(Path(tree, tree.root))

    def release_locked(self) -> None:
        if self._tree.namespace is self._namespace:
            unmount_tree_locked(self._vfs, self._tree, spreads=False)


class FsContext(OpenFile):
    """A descriptor of fsopen or fspick (struct fs_context): parameters, then the file system."""

    def __init__(self, kernel: Kernel, fstype: FileSystemType | None, sb: SuperBlock | None = None) -> None:
        super().__init__(O_RDWR)
        self.attach(anonymous_path(kernel, b"[fscontext]"))
        self._fstype = fstype
        self._picked = sb
        """The file system that fspick is to change."""
        self._made: SuperBlock | None = None
        self._done = False
        self.source: bytes | None = None
        self._set = self._cleared = 0
        self._options: dict[bytes, bytes | None] = {}

    def check_takes_parameters(self) -> None:
        if self._picked is None and (self._fstype is None or self._made is not None):
            raise SysError(errno.EBUSY, "not waiting for parameters")

    def _add(self, key: bytes, value: bytes | None) -> None:
        size = sum(len(k) + len(v or b"") + 2 for k, v in self._options.items())
        if size + len(key) + len(value or b"") > OPTIONS_MAX:
            raise SysError(errno.EINVAL, "the options are too long")
        self._options[key] = value

    def set_flag(self, key: bytes) -> None:
        """FSCONFIG_SET_FLAG."""
        self.check_takes_parameters()
        known = SUPERBLOCK_PARAMETERS.get(key)
        if known is None:
            self._add(key, None)
            return
        self._set = self._set & ~known[1] | known[0]
        self._cleared = self._cleared & ~known[0] | known[1]

    def set_string(self, key: bytes, value: bytes) -> None:
        """FSCONFIG_SET_STRING."""
        self.check_takes_parameters()
        if key != b"source":
            self._add(key, value)
        elif self.source is not None:
            raise SysError(errno.EINVAL, "two sources")
        else:
            self.source = value

    def create(self, task: Task) -> None:
        """FSCONFIG_CMD_CREATE."""
        if self._fstype is None or self._made is not None:
            raise SysError(errno.EBUSY, "made already")
        options = [key if value is None else key + b"=" + value for key, value in self._options.items()]
        self._made = self._fstype.mount(task.kernel, task, self.source or b"none", self._set, b",".join(options))

    def reconfigure(self, task: Task) -> None:
        """FSCONFIG_CMD_RECONFIGURE."""
        from devices.vfs.mounting import reconfigure_super

        sb = self._picked
        if sb is None:
            raise SysError(errno.EBUSY, "nothing to change")
        flags = sb.flags & ~self._cleared | self._set
        reconfigure_super(task, sb, flags, {key: value or b"" for key, value in self._options.items()})
        self._set = self._cleared = 0
        self._options.clear()

    def mount(self, vfs: Vfs, flags: int) -> TreeFile:
        """fsmount(): the file system, once."""
        from devices.vfs.path import root_dentry

        if self._done or self._picked is not None:
            raise SysError(errno.EBUSY, "mounted already")
        if self._made is None:
            raise SysError(errno.EINVAL, "not made yet")
        sb = self._made
        file = TreeFile(vfs, Mount(vfs, sb, root_dentry(sb), flags, self.source or b"none"))
        self._done = True
        self._picked = sb
        return file

    def read(self, task: Task, segments: Segments) -> int:
        """Messages about what went wrong: there are none."""
        raise SysError(errno.ENODATA)

    def release_locked(self) -> None:
        if self._made is not None and not self._done:
            self._made.shutdown()


def mount_flags_of(attributes: int) -> int:
    """MNT_* from MOUNT_ATTR_* (attr_flags_to_mnt_flags()) without those about atime."""
    return sum(flag for flag, (_, attribute) in ms.FLAG_NAMES.items() if attribute & attributes & ~ms.ATIME_ATTRS)


def atime_flags(attributes: int) -> int:
    """MNT_* of what MOUNT_ATTR__ATIME holds. SysError(EINVAL)."""
    kinds = {
        ms.MOUNT_ATTR_RELATIME: ms.MNT_RELATIME,
        ms.MOUNT_ATTR_NOATIME: ms.MNT_NOATIME,
        ms.MOUNT_ATTR_STRICTATIME: 0,
    }
    kind = attributes & ms.ATIME_ATTRS
    if kind not in kinds:
        raise SysError(errno.EINVAL, "MOUNT_ATTR__ATIME")
    return kinds[kind]
