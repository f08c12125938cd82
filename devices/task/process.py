"""A process: what a thread group shares (signal_struct, mm, files), its credentials and its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.signals.queue import SignalActions, SignalQueue
from devices.task.rlimits import default_rlimits
from devices.vfs.fs_struct import first_fs_locked

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.memory.space import AddressSpace
    from devices.task.task import Task
    from devices.time.timers import Interval
    from devices.vfs.files import FileTable
    from devices.vfs.mount import MountNamespace
    from devices.vfs.path import Path

CAP_LAST = 40
CAP_FULL = (1 << (CAP_LAST + 1)) - 1


class Credentials:
    """struct cred: a task's user and group ids, supplementary groups and capability sets. Replaced, never changed."""

    __slots__ = (
        "ambient", "bounding", "effective", "egid", "euid", "fsgid", "fsuid", "gid", "groups",
        "inheritable", "permitted", "securebits", "sgid", "suid", "uid",
    )  # fmt: skip

    def __init__(self, uid: int = 0, gid: int = 0, groups: tuple[int, ...] = ()) -> None:
        self.uid = self.euid = self.suid = self.fsuid = uid
        self.gid = self.egid = self.sgid = self.fsgid = gid
        self.groups = groups
        self.permitted = self.effective = CAP_FULL if uid == 0 else 0
        self.inheritable = self.ambient = 0
        self.bounding = CAP_FULL
        self.securebits = 0

    def copy(self) -> Credentials:
        other = Credentials.__new__(Credentials)
        for name in Credentials.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    def capable(self, capability: int) -> bool:
        """Is `capability` (a CAP_* number) in the effective set?"""
        return bool(self.effective >> capability & 1)


class Process:
    """A thread group."""

    def __init__(self, kernel: Kernel, pid: int, memory: AddressSpace, files: FileTable) -> None:
        self.kernel = kernel
        self.pid = pid
        self.parent_pid = kernel.INIT_PID
        self.pgid = pid
        self.sid = pid
        self.memory = memory
        self.files = files
        self.tasks: dict[int, Task] = {}
        self.actions = SignalActions()
        self.pending = SignalQueue()
        self.rlimits = default_rlimits(kernel)
        self.fs = first_fs_locked(kernel)
        self.dumpable = 1
        self.real_timer: Interval | None = None
        """ITIMER_REAL, once it was used."""
        self.child_subreaper = False
        self.thp_disable = False
        self.comm = b""
        self.exe = b""
        self.argv: list[bytes] = []
        self.environ: list[bytes] = []
        self.auxv = b""
        """What the program was started with, for /proc."""
        self.exe_path: Path | None = None
        """The file that it runs, in a root file system."""
        self.exiting = False
        self.status = 0
        """As wait(2) encodes it: exit code << 8, or the signal's number (| 0x80: core dumped)."""
        self.ended_task_ns = 0
        """CPU time of tasks that have ended, in ns."""

    @property
    def mounts(self) -> MountNamespace:
        return self.fs.mounts

    @property
    def umask(self) -> int:
        return self.fs.umask

    @umask.setter
    def umask(self, mask: int) -> None:
        self.fs.umask = mask

    def exit_group_locked(self, status: int) -> None:
        """End every task of the process; the first status given is the process's."""
        if self.exiting:
            return
        self.exiting = True
        self.status = status
        for task in self.tasks.values():
            task.notify_locked()

    def task_gone_locked(self, task: Task) -> None:
        """A task has ended; the last one takes the process with it."""
        del self.tasks[task.tid]
        self.kernel.task_gone_locked(task)
        if not self.tasks:
            if self.real_timer is not None:
                self.real_timer.disarm()
            self.files.release_locked()
            self.fs.release_locked()
            self.memory.teardown()
            self.kernel.process_gone_locked(self)
