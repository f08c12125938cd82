"""The guest's clocks by their clock ids: man 2 clock_gettime, kernel/time/posix-timers.c and posix-cpu-timers.c."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.time.abi import (
    CLOCK_BOOTTIME,
    CLOCK_MONOTONIC,
    CLOCK_MONOTONIC_COARSE,
    CLOCK_MONOTONIC_RAW,
    CLOCK_PROCESS_CPUTIME_ID,
    CLOCK_REALTIME,
    CLOCK_REALTIME_COARSE,
    CLOCK_TAI,
    CLOCK_THREAD_CPUTIME_ID,
    NSEC_PER_SEC,
)
from devices.time.cputime import process_cpu_ns, task_cpu_ns

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.task.task import Task
    from devices.time.vvar import VvarPage

FINE = (CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME, CLOCK_TAI)
COARSE = (CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE)
CPU_CLOCKS = (CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID)

CPUCLOCK_PROF, CPUCLOCK_VIRT, CPUCLOCK_SCHED = range(3)
CPUCLOCK_PERTHREAD = 4
CPUCLOCK_WHICH = 3
CLOCKFD = 3
"""A negative clock id with these low bits names a descriptor of a clock device."""


class HostClocks:
    """The host's clocks: the one place where time enters."""

    monotonic_ns = staticmethod(time.monotonic_ns)
    """CLOCK_MONOTONIC."""
    realtime_ns = staticmethod(time.time_ns)
    """CLOCK_REALTIME."""
    read = staticmethod(time.clock_gettime_ns)
    """Any clock by its id."""

    def __init__(self) -> None:
        self.resolution_ns = round(time.clock_getres(CLOCK_MONOTONIC) * NSEC_PER_SEC)
        self.coarse_ns = round(time.clock_getres(CLOCK_MONOTONIC_COARSE) * NSEC_PER_SEC)
        """The host's tick."""


def is_device_clock(clock: int) -> bool:
    """Does a clock id mean a descriptor of a clock device? There are no such devices here."""
    return clock < 0 and clock & 7 == CLOCKFD


class Clock:
    """A machine's clocks. `vvar` is set by who maps the page; without one the host's clocks answer."""

    def __init__(self, host: HostClocks | None = None) -> None:
        self.host = host or HostClocks()
        self.vvar: VvarPage | None = None
        self.monotonic_ns: Callable[[], int] = self.host.monotonic_ns
        """The host's CLOCK_MONOTONIC: what deadlines of Task.block are in."""
        self.realtime_ns: Callable[[], int] = self.host.realtime_ns
        """The host's CLOCK_REALTIME."""
        self._readers: dict[int, Callable[[Task], int]] = {
            CLOCK_REALTIME: self._other(CLOCK_REALTIME),
            CLOCK_MONOTONIC: self._monotonic,
            CLOCK_PROCESS_CPUTIME_ID: lambda task: process_cpu_ns(task.process),
            CLOCK_THREAD_CPUTIME_ID: task_cpu_ns,
            CLOCK_MONOTONIC_RAW: self._other(CLOCK_MONOTONIC_RAW),
            CLOCK_REALTIME_COARSE: self._coarse(CLOCK_REALTIME),
            CLOCK_MONOTONIC_COARSE: self._coarse(CLOCK_MONOTONIC),
            CLOCK_BOOTTIME: self._other(CLOCK_BOOTTIME),
            CLOCK_TAI: self._other(CLOCK_TAI),
        }

    def now(self, clock: int, task: Task) -> int:
        """Nanoseconds of a clock, as `task` (the calling one) sees it. EINVAL for one that is not there.

        CLOCK_REALTIME_ALARM and CLOCK_BOOTTIME_ALARM are not: they need a real-time clock device.
        """
        reader = self._readers.get(clock)
        if reader is None:
            reader = self._dynamic(clock, task, True)
        return reader(task)

    def resolution(self, clock: int, task: Task) -> int:
        """Nanoseconds between two readings of a clock, at best. EINVAL for one that is not there."""
        if clock in FINE:
            return self.host.resolution_ns
        if clock in COARSE:
            return self.host.coarse_ns
        if clock not in CPU_CLOCKS:
            self._dynamic(clock, task, False)
            if clock & CPUCLOCK_WHICH != CPUCLOCK_SCHED:
                return self.host.coarse_ns
        return 1

    def _monotonic(self, task: Task) -> int:
        vvar = self.vvar
        return self.monotonic_ns() if vvar is None else vvar.monotonic_locked(task.cpu)

    def _other(self, clock: int) -> Callable[[Task], int]:
        host_read = self.host.read

        def read(task: Task) -> int:
            vvar = self.vvar
            return host_read(clock) if vvar is None else vvar.clock_locked(clock, task.cpu)

        return read

    def _coarse(self, of: int) -> Callable[[Task], int]:
        """The fine clock, rounded down to a tick: as the vDSO does it, so that neither is ever ahead of the other."""
        fine = self._monotonic if of == CLOCK_MONOTONIC else self._other(of)
        tick = self.host.coarse_ns

        def read(task: Task) -> int:
            now = fine(task)
            return now - now % tick

        return read

    def _dynamic(self, clock: int, task: Task, reading: bool) -> Callable[[Task], int]:
        """pid_for_clock(): what reads the CPU clock of a task or process that a negative clock id names. EINVAL."""
        if clock >= 0 or clock & CPUCLOCK_WHICH > CPUCLOCK_SCHED:
            raise SysError(errno.EINVAL, "no such clock")
        pid = ~(clock >> 3)
        target = task.kernel.tasks.get(pid) if pid else task
        if clock & CPUCLOCK_PERTHREAD:
            if target is None or target.process is not task.process:
                raise SysError(errno.EINVAL, "no thread of the process")
            found = target
            return lambda _: task_cpu_ns(found)
        process = task.process if not pid or (reading and target is task) else task.kernel.processes.get(pid)
        if process is None:
            raise SysError(errno.EINVAL, "no such process")
        group = process
        return lambda _: process_cpu_ns(group)
