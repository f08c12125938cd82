"""A task: one guest thread, with its vCPU and its own way to sleep and to be woken."""

from __future__ import annotations

import os
import select
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from devices.errors import ERESTARTSYS, Interrupted, LeaveGuest, SysError, TaskExit
from devices.signals.delivery import deliver_locked, pending_locked
from devices.signals.faults import exception_locked
from devices.signals.queue import SignalQueue
from devices.signals.send import task_exits_locked
from devices.task.policy import Scheduling
from devices.time.cputime import end_task_locked, start_task
from devices.wait import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from devices.kernel import Kernel
    from devices.task.process import Credentials, Process
    from devices.wait import WaitQueue
    from vmm.cpu import Cpu

LONGEST_SLEEP = 10**9
"""Seconds that a host primitive is asked to wait at most at once."""


class Task:
    """A guest thread (struct task_struct). The kernel lock guards all of it, but what its own thread alone uses."""

    cpu: Cpu
    """The vCPU, from the start of the task's thread on."""

    def __init__(self, process: Process, tid: int, credentials: Credentials) -> None:
        self.process = process
        self.kernel: Kernel = process.kernel
        self.tid = tid
        self.memory = process.memory
        self.files = process.files
        self.credentials = credentials
        self.comm = process.comm
        self.sigmask = 0
        self.saved_sigmask: int | None = None
        """The mask that comes back when the signal that ended sigsuspend, ppoll... has been dealt with."""
        self.pending = SignalQueue()
        self.altstack = (0, 0, 2)
        """sigaltstack: address, size in bytes, flags (2 is SS_DISABLE)."""
        self.clear_child_tid = 0
        self.robust_list = 0
        self.exit_status = 0
        self.restart: tuple[int, int] | None = None
        """Number and restart code of a call that a signal cut short, until delivery has decided what becomes of it."""
        self.scheduling = Scheduling(process.kernel.cpus)
        self.cpu_clock: int | None = None
        """The host's clock of the CPU time of the task's thread, while the task runs."""
        self.cpu_base_ns = 0
        self.no_new_privs = False
        self.pdeath_signal = 0
        self.timer_slack_ns = self.default_timer_slack_ns = 50_000
        self.restart_block: Callable[[Task], int] | None = None
        """What restart_syscall(2) does, with the remaining time."""
        self.killed = False
        """It ends, whatever becomes of its process: another task of it calls execve."""
        self.vfork_parent: Task | None = None
        """The task that waits in vfork until this one ends or calls execve."""
        self.start_ns = 0
        """CLOCK_BOOTTIME when it was made."""
        self.work = False
        """There is something to do before the guest may go on (signals, exit): see do_work_locked()."""
        self.in_place = False
        """The call under way is served inside the guest's run: it must not wait (see devices/errors.py, LeaveGuest)."""
        self._ident = 0
        self._wake = threading.Lock()
        self._wake.acquire()
        self._asleep = False
        self._token = False
        self._woken = False
        self._host_wake = -1
        self._polling = False
        self._killable = False

    # Waiting

    def block(
        self, queue: WaitQueue, deadline: int | None = None, *, waiter: Waiter | None = None, restart: int = ERESTARTSYS
    ) -> bool:
        """Wait in `queue` until woken (True) or until CLOCK_MONOTONIC reaches `deadline` ns (False).

        Raises Interrupted(restart) when a signal is to be acted upon, LeaveGuest when the call is served in place.
        """
        self.check_may_wait_locked(restart)
        waiter = waiter or Waiter(self)
        queue.add(waiter)
        try:
            return self.sleep(deadline, restart)
        finally:
            if waiter.queue is not None:  # it may have been moved to another queue meanwhile
                waiter.queue.remove(waiter)

    def check_may_wait_locked(self, restart: int = ERESTARTSYS) -> None:
        """To be called before a wait has any effect: see block() for what it raises."""
        if self.in_place:
            raise LeaveGuest
        if self.work and self.signal_pending_locked():
            raise Interrupted(restart)

    def sleep(self, deadline: int | None = None, restart: int = ERESTARTSYS) -> bool:
        """The wait of block(), for a caller that has put its waiters into several queues itself (and removes them)."""
        self.check_may_wait_locked(restart)
        clock = self.kernel.clock
        lock = self.kernel.lock
        self._woken = False
        self._asleep = True
        while True:
            timeout = -1.0 if deadline is None else min((deadline - clock.monotonic_ns()) / 1e9, LONGEST_SLEEP)
            lock.release()
            got = self._wake.acquire(True, timeout) if timeout < 0 and deadline is None else self._timed(timeout)
            lock.acquire()
            if self._token and not got:
                self._wake.acquire()
            told, self._token = self._token, False
            # Told to look at its signals, it may find that another thread was quicker: then it sleeps on
            if self._woken or (told and self.work and self.signal_pending_locked()):
                break
            if deadline is not None and clock.monotonic_ns() >= deadline:
                break
        self._asleep = False
        if self._woken:
            return True
        if self.work and self.signal_pending_locked():
            raise Interrupted(restart)
        return False

    def sleep_killable(self) -> None:
        """Sleep until wake() is called; signals wait, but for the end of the task, which raises TaskExit."""
        self._killable = True
        try:
            self.sleep()
        except Interrupted:
            raise TaskExit from None
        finally:
            self._killable = False
            self.work = True

    def _timed(self, timeout: float) -> bool:
        return self._wake.acquire(True, timeout) if timeout > 0 else self._wake.acquire(False)

    def wake_sleeper(self, waiter: Waiter) -> None:
        """A waker picked this task's waiter."""
        self.wake()

    def wake(self) -> None:
        """End the task's sleep() or wait_for()."""
        self._woken = True
        if self._polling:
            os.eventfd_write(self._host_wake, 1)
        else:
            self._rouse()

    def _rouse(self) -> None:
        if self._asleep and not self._token:
            self._token = True
            self._wake.release()

    def notify_locked(self) -> None:
        """Make the task look at its signals and its process's end, wherever it is: asleep, in the guest, polling."""
        self.work = True
        if self._asleep:
            self._rouse()
        elif self._ident != threading.get_ident() or self.in_place:
            if self._host_wake >= 0:
                os.eventfd_write(self._host_wake, 1)
            if hasattr(self, "cpu"):
                self.cpu.kick()

    def wait_host(self, fd: int, events: int, deadline: int | None = None, restart: int = ERESTARTSYS) -> int:
        """Wait until the host descriptor `fd` is ready for `events` (poll(2) bits); the ready bits, 0 at `deadline`.

        Raises as block() does.
        """
        return self.wait_for([(fd, events)], deadline, restart).get(fd, 0)

    def wait_for(
        self, fds: Sequence[tuple[int, int]], deadline: int | None = None, restart: int = ERESTARTSYS
    ) -> dict[int, int]:
        """Wait until wake() is called, one of the host descriptors `fds` is ready for its poll(2) events, or `deadline`
        has come; the ready bits by descriptor. The caller has told its wakers and takes that back.

        Raises as block() does.
        """
        if not fds:
            self.sleep(deadline, restart)
            return {}
        self.check_may_wait_locked(restart)
        if self._host_wake < 0:
            self._host_wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        poll = select.poll()
        poll.register(self._host_wake, select.POLLIN)
        for fd, events in fds:
            poll.register(fd, events)
        self._woken = False
        self._polling = True
        try:
            while True:
                timeout = None
                if deadline is not None:
                    timeout = max(0, min((deadline - self.kernel.clock.monotonic_ns()) / 1e6, LONGEST_SLEEP))
                with self.unlocked():
                    ready = dict(poll.poll(timeout))
                if ready.pop(self._host_wake, 0):
                    os.eventfd_read(self._host_wake)
                if ready or self._woken:
                    return ready
                if self.work and self.signal_pending_locked():
                    raise Interrupted(restart)
                if deadline is not None and self.kernel.clock.monotonic_ns() >= deadline:
                    return {}
        finally:
            self._polling = False

    @contextmanager
    def unlocked(self) -> Iterator[None]:
        """Drop the kernel lock around a host call that may take long. Raises LeaveGuest when served in place."""
        if self.in_place:
            raise LeaveGuest
        self.kernel.lock.release()
        try:
            yield
        finally:
            self.kernel.lock.acquire()

    # Between the guest and its calls

    def signal_pending_locked(self) -> bool:
        """Is there anything that ends a wait: a signal that is not blocked and not ignored, or the process's end?"""
        return self.killed or self.process.exiting or (not self._killable and pending_locked(self))

    def interrupted_call_locked(self, number: int, restart: int) -> None:
        """A call ended with Interrupted: delivery decides between EINTR and another go."""
        self.restart = (number, restart)
        self.work = True

    def do_work_locked(self) -> None:
        """What is due before the guest goes on: end with the process, act upon signals. Raises TaskExit."""
        self.work = False
        if self.killed or self.process.exiting:
            raise TaskExit
        deliver_locked(self)

    def page_fault_locked(self, address: int, error: int) -> None:
        """Serve a page fault, or send the signal that Linux sends for it."""
        problem = self.memory.fault(address, error)
        if problem is not None:
            self.kernel.memory_fault_locked(self, problem)

    def exception_locked(self, vector: int, error: int) -> None:
        """A CPU exception of the program becomes its signal (arch/x86/kernel/traps.c)."""
        exception_locked(self, vector, error)

    # Life

    def started(self, cpu: Cpu) -> None:
        """The task's thread is there, with its CPU."""
        self.cpu = cpu
        self._ident = threading.get_ident()
        start_task(self)

    def gone_locked(self) -> None:
        """The task has ended, on its own thread: tell whoever waits for that, and leave the process."""
        if self._host_wake >= 0:
            os.close(self._host_wake)
            self._host_wake = -1
        self.release_memory_locked()
        task_exits_locked(self)
        if self.files is not self.process.files:
            self.files.release_locked()
        end_task_locked(self)
        self.process.task_gone_locked(self)

    def release_memory_locked(self) -> None:
        """mm_release(): robust futexes, then clear_child_tid and its wake-up (set_tid_address(2)), vfork's parent."""
        from devices.futex.robust import exit_robust_list_locked

        exit_robust_list_locked(self)
        address, self.clear_child_tid = self.clear_child_tid, 0
        if address and (len(self.process.tasks) > 1 or self.memory.users > 1):
            with suppress(SysError):  # the kernel ignores a bad address too
                self.memory.write_u32(address, 0)
                self.kernel.futexes.wake_address_locked(self, address, 1)
        parent, self.vfork_parent = self.vfork_parent, None
        if parent is not None:
            parent.wake()
