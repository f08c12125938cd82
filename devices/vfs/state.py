"""What a machine's VFS keeps for all processes: recent dentries, numbers to give out, device files, sysctls."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from devices.vfs.abi import makedev

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.task.task import Task
    from devices.vfs.events import Event
    from devices.vfs.files import OpenFile
    from devices.vfs.fs_struct import FsStruct
    from devices.vfs.inode import SuperBlock
    from devices.vfs.locks import FileLocks, RangeLock
    from devices.vfs.mount import Mount, MountNamespace
    from devices.vfs.path import Dentry, Path

    Opener = Callable[[Task, Path, int], OpenFile]
    """Opens a device file: (task, path, O_* flags)."""

RECENT = 1024
"""Dentries that are kept alive for the next walk, beyond those in use."""
FIRST_UNIQUE_MOUNT = 1 << 31
"""Mount ids as statx and listmount give them begin here (MNT_UNIQUE_ID_OFFSET)."""
SYSCTLS = {"protected_symlinks": 0, "protected_hardlinks": 1, "protected_fifos": 0, "protected_regular": 0}
"""fs.protected_* as Linux starts, but for protected_hardlinks, which every distribution sets."""


class Vfs:
    """`kernel.vfs`."""

    def __init__(self) -> None:
        self.sysctls = dict(SYSCTLS)
        """/proc/sys/fs/NAME."""
        self.devices: dict[tuple[int, int], Opener] = {}
        """What opens a device file, by (S_IFCHR or S_IFBLK, device number)."""
        self.namespace: MountNamespace | None = None
        """The first mount namespace, once there is a root file system."""
        self.first_fs: FsStruct | None = None
        """Where the machine's first processes are: at its root."""
        self.lock_waits: dict[RangeLock, FileLocks] = {}
        """Requests for range locks that somebody waits for, and the locks of their file."""
        self.watches = 0
        """Marks of inotify and fanotify in the machine: nobody looks for some while it is 0."""
        self.on_event: Callable[[Event], None] = lambda event: None
        self.internal_mounts: dict[bytes, Mount] = {}
        """Mounts of other such files, by a name (pipefs, shm)."""
        self.mounts: dict[int, Mount] = {}
        """Every mount by its unique id."""
        self.kept: list[Dentry | None] = [None] * RECENT
        self._next_kept = 0
        self._minors = 0
        self._cookie = 0
        self._namespaces = 0
        self._mount_ids = Numbers()
        self._unique_mount = FIRST_UNIQUE_MOUNT
        self._groups = Numbers()

    def keep(self, dentry: Dentry) -> None:
        """Let a new dentry live for a while. The oldest goes: to find a dentry again costs nothing more."""
        at = self._next_kept
        self.kept[at] = dentry
        self._next_kept = (at + 1) % RECENT

    def forget(self, sb: SuperBlock) -> None:
        """The file system is not mounted any more."""
        for at, dentry in enumerate(self.kept):
            if dentry is not None and dentry.inode.sb is sb:
                self.kept[at] = None

    def new_dev_locked(self) -> int:
        """A device number for a file system without a device (major 0)."""
        self._minors += 1
        return makedev(0, self._minors)

    def new_cookie(self) -> int:
        """What the two halves of a rename's event have in common."""
        self._cookie = self._cookie % 0xFFFF_FFFF + 1
        return self._cookie

    def new_mount_id(self) -> tuple[int, int]:
        """(the id of mountinfo, which is used again, and the unique one)."""
        number = self._mount_ids.take()
        self._unique_mount += 1
        return number, self._unique_mount

    def free_mount_id(self, number: int) -> None:
        self._mount_ids.give_back(number)

    def new_namespace_id(self) -> int:
        self._namespaces += 1
        return self._namespaces

    def new_group_id(self) -> int:
        """The number of a peer group in mountinfo."""
        return self._groups.take()

    def free_group_id(self, number: int) -> None:
        self._groups.give_back(number)


class Numbers:
    """Gives out the lowest number from 1 on that is free (an ida)."""

    __slots__ = ("_free", "_highest")

    def __init__(self) -> None:
        self._free: list[int] = []
        self._highest = 0

    def take(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._highest += 1
        return self._highest

    def give_back(self, number: int) -> None:
        heapq.heappush(self._free, number)
