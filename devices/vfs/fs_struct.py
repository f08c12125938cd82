"""Where a process is in the tree of names (struct fs_struct): root and working directory, umask, mount namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.vfs.files import drop_locked, hold

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.vfs.mount import MountNamespace
    from devices.vfs.path import Path


class FsStruct:
    """Shared by tasks with CLONE_FS; `copy()` is what another process starts with."""

    __slots__ = ("cwd", "mounts", "root", "umask", "users")

    def __init__(
        self, mounts: MountNamespace, root: Path, cwd: Path, umask: int = 0o022, *, counted: bool = True
    ) -> None:
        """One that is not `counted` keeps nothing mounted: it is for copies to be made of."""
        self.mounts = mounts
        self.root = root
        self.cwd = cwd
        self.umask = umask
        self.users = 1
        if counted:
            hold(root)
            hold(cwd)

    def copy(self) -> FsStruct:
        return FsStruct(self.mounts, self.root, self.cwd, self.umask)

    def share(self) -> FsStruct:
        self.users += 1
        return self

    def set_root_locked(self, path: Path) -> None:
        hold(path)
        old, self.root = self.root, path
        drop_locked(old)

    def set_cwd_locked(self, path: Path) -> None:
        hold(path)
        old, self.cwd = self.cwd, path
        drop_locked(old)

    def release_locked(self) -> None:
        """A process that used it has ended (exit_fs())."""
        self.users -= 1
        if not self.users:
            drop_locked(self.cwd)
            drop_locked(self.root)


def first_fs_locked(kernel: Kernel) -> FsStruct:
    """What the machine's first processes start with: its root file system (set_root_locked() in mount.py), or, where
    none was set, one that holds nothing but the booted file."""
    vfs = kernel.vfs
    if vfs.first_fs is None:
        from devices.vfs.bootroot import BootRoot
        from devices.vfs.mount import set_root_locked

        set_root_locked(kernel, BootRoot(kernel))
    assert vfs.first_fs is not None
    return vfs.first_fs.copy()
