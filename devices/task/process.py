"""A process: what a thread group shares (signal_struct, mm, files), its credentials and its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.signals.abi import SIGCHLD
from devices.signals.queue import SignalActions, SignalQueue
from devices.task.rlimits import default_rlimits
from devices.vfs.fs_struct import first_fs_locked
from devices.wait import WaitQueue

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.memory.space import AddressSpace
    from devices.task.executable import Executable
    from devices.task.task import Task
    from devices.time.timers import Interval
    from devices.vfs.files import FileTable
    from devices.vfs.fs_struct import FsStruct
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
    """A thread group: alive while it has tasks, then a zombie until its parent has waited for it.

    A process without a `parent` is a child of process 1, which the monitor plays: it reaps at once, and takes in what
    has lost its parent.
    """

    leader: Task | None = None
    """The task that has its number; stays when that has ended."""
    parent: Process | None = None
    parent_task: Task | None = None
    """The thread of the parent that made it (or took it in), for __WNOTHREAD and PR_SET_PDEATHSIG."""
    exit_signal = SIGCHLD
    """What the parent is sent at its end; 0 is nothing."""
    zombie = False
    did_exec = False
    """It has called execve since it was forked: its parent may not move it to another group any more."""
    stopped_by = 0
    """The signal that has stopped it, while a parent has not waited for that (WSTOPPED)."""
    continued = False
    """It was continued, and no parent has waited for that (WCONTINUED)."""
    stop_told = False
    """All tasks have stopped, and the parent knows."""
    exec_task: Task | None = None
    """The task that waits in execve for the others to end."""

    def __init__(
        self, kernel: Kernel, pid: int, memory: AddressSpace, files: FileTable, fs: FsStruct | None = None
    ) -> None:
        self.kernel = kernel
        self.pid = pid
        self.parent_pid = kernel.INIT_PID
        """getppid(2)."""
        self.children: dict[Process, None] = {}
        """In the order in which they came."""
        self.child_wait = WaitQueue()
        """Tasks in wait4 and waitid."""
        self.job = self
        """The program that the monitor has started, which this process is or descends from: it ends with that."""
        self.pgid = pid
        self.sid = pid
        self.memory = memory
        self.files = files
        self.tasks: dict[int, Task] = {}
        self.actions = SignalActions()
        self.pending = SignalQueue()
        self.rlimits = default_rlimits(kernel)
        self.fs = fs or first_fs_locked(kernel)
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
        self.executable: Executable | None = None
        """The file that it runs; it cannot be written to meanwhile."""
        self.exiting = False
        self.status = 0
        """As wait(2) encodes it: exit code << 8, or the signal's number (| 0x80: core dumped)."""
        self.ended_task_ns = 0
        """CPU time of tasks that have ended, in ns."""
        self.children_ns = 0
        """CPU time of the children that were waited for, and of theirs, in ns."""
        self.resident = 0
        """The most memory that it or a child that was waited for has been seen to use, in pages (ru_maxrss)."""
        self.children_resident = 0

    @property
    def mounts(self) -> MountNamespace:
        return self.fs.mounts

    @property
    def umask(self) -> int:
        return self.fs.umask

    @umask.setter
    def umask(self, mask: int) -> None:
        self.fs.umask = mask

    @property
    def exe_path(self) -> Path | None:
        """Where the file that it runs is, in a root file system."""
        return self.executable.path if self.executable is not None else None

    def set_parent_locked(self, task: Task | None) -> None:
        """It is a child of this task's process from now on; None: of process 1."""
        if self.parent is not None:
            del self.parent.children[self]
        self.parent_task = task
        self.parent = task.process if task is not None else None
        self.parent_pid = self.kernel.INIT_PID
        if self.parent is not None:
            self.parent.children[self] = None
            self.parent_pid = self.parent.pid

    def note_resident(self) -> None:
        """Its memory is about to go: remember how much that was."""
        self.resident = max(self.resident, self.memory.resident)

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
        from devices.task.exit import process_ends_locked, thread_ends_locked

        del self.tasks[task.tid]
        self.kernel.task_gone_locked(task)
        if self.tasks:
            thread_ends_locked(task)
        else:
            process_ends_locked(self, task)
