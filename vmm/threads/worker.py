"""A pool thread: runs one job after another and keeps its name, signal mask and affinity in order."""

import ctypes
import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vmm.threads import job as jobs
from vmm.threads import kick

if TYPE_CHECKING:
    from vmm.threads.job import Job
    from vmm.threads.runtime import Runtime

_PR_SET_NAME = 15  # <linux/prctl.h>

# PyDLL keeps the GIL: the call takes less than a microsecond, taking the GIL again behind a busy thread up to 5 ms.
_prctl = ctypes.PyDLL(None).prctl
_prctl.argtypes = (ctypes.c_int, ctypes.c_char_p)
_prctl.restype = ctypes.c_int


def set_os_name(name: str) -> None:
    """Name the calling thread for the kernel (``/proc/self/task/*/comm``); cut to 15 bytes. PR_SET_NAME(2const)."""
    _prctl(_PR_SET_NAME, name.encode("utf-8", "replace"))


class Worker(threading.Thread):
    """A thread of `runtime`, daemonic: neither idle threads nor a vCPU left in ``KVM_RUN`` keep the interpreter alive.

    (A daemon thread that wants the GIL after the interpreter has been finalized ends or hangs there; both are fine
    here, because nothing waits for it.) `assigned` and then `wake` hand it a job; a wake-up without a job ends it.
    Both are the runtime's to set, under its lock.
    """

    def __init__(self, runtime: "Runtime", first: "Job[Any]") -> None:
        super().__init__(name=runtime.name, daemon=True)
        self.runtime = runtime
        self.assigned: Job[Any] | None = first
        self.current: Job[Any] | None = None
        self.wake = threading.Lock()  # a binary semaphore: taken while there is nothing to do
        self.spoiled = False  # its affinity could not be put back: must not go to the pool
        self._pinned = False

    def run(self) -> None:
        self._prepare()
        stays = True
        while stays and (job := self._next()) is not None:
            # The name first: the system call also delivers a kick that was sent to the job before this one (kick.py).
            set_os_name(job.name)
            self.name = job.name
            self.current = job
            job._start(self)
            job._run()
            # Free the slot first, publish the end second: who joins and spawns again finds this thread in the pool.
            stays = self.runtime._settle(self, job._depth > 0)
            jobs._current.job = None
            job._finish()
            # An idle thread must not keep a job and what hangs on it; nor must this frame, part of the traceback of
            # its exception.
            self.current = job = None
        self.runtime._forget(self)

    def _next(self) -> "Job[Any] | None":
        """Wait for a job; None when the thread is to end: the runtime closed, or nothing came for its idle time."""
        if not self.wake.acquire(blocking=False):
            set_os_name(self.runtime.name)
            self.name = self.runtime.name
            if not self.wake.acquire(timeout=self.runtime.idle_seconds):
                if self.runtime._retire(self):
                    return None
                self.wake.acquire()  # a job was handed over in this very moment
        job, self.assigned = self.assigned, None
        return job

    def _prepare(self) -> None:
        """Undo what a new thread inherits from the one that started it, be it a pinned vCPU thread or a foreign one."""
        kick.unblock()
        if os.sched_getaffinity(0) != self.runtime.cpus:
            self._restore_affinity()

    def pin(self, cpus: Iterable[int]) -> None:
        """Set the affinity of the calling thread, this one."""
        os.sched_setaffinity(0, cpus)
        self._pinned = True

    def unpin(self) -> None:
        """Give the calling thread, this one, the runtime's affinity if `pin` has changed it."""
        if self._pinned:
            self._pinned = False
            self._restore_affinity()

    def _restore_affinity(self) -> None:
        try:
            os.sched_setaffinity(0, self.runtime.cpus)
        except OSError:  # the CPUs that we began with are no longer ours (cpuset(7), CPU hot-unplug)
            self.spoiled = True
