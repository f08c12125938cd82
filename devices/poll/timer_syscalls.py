"""timerfd_create, timerfd_settime, timerfd_gettime, and the process's real-time interval timer: alarm, setitimer."""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING, Annotated

from devices.args import EnumSet, Fd, FlagSet, Ptr, StructArg, UInt
from devices.bus import syscall
from devices.errors import SysError
from devices.fs.anon import anonymous_path
from devices.poll.timerfd import TimerFd
from devices.signals.info import SigInfo
from devices.signals.send import send_locked
from devices.task.rlimits import RLIMIT_NOFILE
from devices.time.abi import (
    CLOCK_BOOTTIME,
    CLOCK_BOOTTIME_ALARM,
    CLOCK_MONOTONIC,
    CLOCK_REALTIME,
    CLOCK_REALTIME_ALARM,
    NSEC_PER_SEC,
    NSEC_PER_USEC,
    USEC_PER_SEC,
    ClockId,
    read_timespec,
    write_timespec,
)
from devices.time.sleep import Deadline
from devices.time.timers import Interval

if TYPE_CHECKING:
    from devices.task.process import Process
    from devices.task.task import Task

TFD_NONBLOCK, TFD_CLOEXEC = 0o4000, 0o2000000
TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET = 1, 2
CLOCKS = (CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME)
ALARM_CLOCKS = (CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM)
ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF = range(3)
ITIMERVAL = Struct("<qqqq")
SIGALRM = 14

TimerfdFlags = Annotated[int, FlagSet({"TFD_NONBLOCK": TFD_NONBLOCK, "TFD_CLOEXEC": TFD_CLOEXEC})]
SettimeFlags = Annotated[
    int, FlagSet({"TFD_TIMER_ABSTIME": TFD_TIMER_ABSTIME, "TFD_TIMER_CANCEL_ON_SET": TFD_TIMER_CANCEL_ON_SET})
]
Which = Annotated[
    int, EnumSet({"ITIMER_REAL": ITIMER_REAL, "ITIMER_VIRTUAL": ITIMER_VIRTUAL, "ITIMER_PROF": ITIMER_PROF})
]
SPEC = ("<qqqq", ("it_interval.tv_sec", "it_interval.tv_nsec", "it_value.tv_sec", "it_value.tv_nsec"))
Itimerspec = Annotated[int, StructArg("itimerspec", *SPEC)]
ItimerspecOut = Annotated[int, StructArg("itimerspec", *SPEC, late=True)]


@syscall("timerfd_create")
def timerfd_create(task: Task, clockid: ClockId, flags: TimerfdFlags) -> int:
    """man 2 timerfd_create. There is no alarm clock device: its clocks are refused as on a machine without one."""
    if flags & ~(TFD_NONBLOCK | TFD_CLOEXEC) or clockid not in CLOCKS + ALARM_CLOCKS:
        raise SysError(errno.EINVAL)
    if clockid in ALARM_CLOCKS:
        raise SysError(errno.EOPNOTSUPP, "no alarm clock device")
    limit = task.process.rlimits[RLIMIT_NOFILE][0]
    file = TimerFd(task.kernel, clockid, flags)
    file.attach(anonymous_path(task.kernel, b"[timerfd]"))
    return task.files.install(file, limit, cloexec=bool(flags & TFD_CLOEXEC))


def timer_of(task: Task, fd: int) -> TimerFd:
    file = task.files.get(fd)
    if not isinstance(file, TimerFd):
        raise SysError(errno.EINVAL, "not a timerfd")
    return file


@syscall("timerfd_settime")
def timerfd_settime(task: Task, fd: Fd, flags: SettimeFlags, new_value: Itimerspec, old_value: ItimerspecOut) -> int:
    interval, value = read_timespec(task.memory, new_value), read_timespec(task.memory, new_value + 16)
    if flags & ~(TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET):
        raise SysError(errno.EINVAL, "unknown flag")
    file = timer_of(task, fd)
    old = file.timer.left, file.timer.interval
    left = value
    if value and flags & TFD_TIMER_ABSTIME:
        left = max(Deadline(file.clock, value).left(task), 0)
    file.set(left if value else None, interval)
    if old_value:
        write_itimerspec(task, old_value, *old)
    return 0


def write_itimerspec(task: Task, address: int, left: int, interval: int) -> None:
    write_timespec(task.memory, address, interval)
    write_timespec(task.memory, address + 16, left)


@syscall("timerfd_gettime")
def timerfd_gettime(task: Task, fd: Fd, curr_value: ItimerspecOut) -> int:
    timer = timer_of(task, fd).timer
    write_itimerspec(task, curr_value, timer.left, timer.interval)
    return 0


# The process's own timer


def real_timer(process: Process) -> Interval:
    """ITIMER_REAL of a process, which sends it SIGALRM."""
    if process.real_timer is None:
        kernel = process.kernel
        process.real_timer = Interval(
            kernel.timers, kernel.clock, lambda: send_locked(process, SIGALRM, SigInfo.kernel(SIGALRM))
        )
    return process.real_timer


@syscall("alarm")
def alarm(task: Task, seconds: UInt) -> int:
    """man 2 alarm: what was left, in seconds rounded to the nearest, but not to 0."""
    timer = real_timer(task.process)
    old = timer.left
    timer.disarm()
    if seconds:
        timer.arm(seconds * NSEC_PER_SEC, 0)
    whole, rest = divmod(old, NSEC_PER_SEC)
    return whole + 1 if (not whole and rest) or rest >= NSEC_PER_SEC // 2 else whole


def check_which(which: int) -> None:
    """The timers of CPU time are not there."""
    if which in (ITIMER_VIRTUAL, ITIMER_PROF):
        raise SysError(errno.ENOSYS, "timers of CPU time")
    if which != ITIMER_REAL:
        raise SysError(errno.EINVAL, "no such timer")


def write_itimerval(task: Task, address: int, left: int, interval: int) -> None:
    values = (*divmod(interval // NSEC_PER_USEC, USEC_PER_SEC), *divmod(left // NSEC_PER_USEC, USEC_PER_SEC))
    task.memory.write_struct(address, ITIMERVAL, *values)


@syscall("getitimer")
def getitimer(task: Task, which: Which, curr_value: Ptr) -> int:
    check_which(which)
    timer = real_timer(task.process)
    write_itimerval(task, curr_value, timer.left, timer.interval if timer.left else 0)
    return 0


@syscall("setitimer")
def setitimer(task: Task, which: Which, new_value: Ptr, old_value: Ptr) -> int:
    """man 2 setitimer; Linux takes a NULL new_value as zeroes."""
    seconds, micros, value_seconds, value_micros = (
        task.memory.read_struct(new_value, ITIMERVAL) if new_value else (0, 0, 0, 0)
    )
    if min(seconds, value_seconds) < 0 or not (0 <= micros < USEC_PER_SEC and 0 <= value_micros < USEC_PER_SEC):
        raise SysError(errno.EINVAL, "timeval out of range")
    check_which(which)
    timer = real_timer(task.process)
    old = timer.left, timer.interval
    timer.disarm()
    left = value_seconds * NSEC_PER_SEC + value_micros * NSEC_PER_USEC
    if left:
        timer.arm(left, seconds * NSEC_PER_SEC + micros * NSEC_PER_USEC)
    if old_value:
        write_itimerval(task, old_value, *(old if old[0] else (0, 0)))
    return 0
