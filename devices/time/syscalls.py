"""The calls about time: man 2 clock_gettime, clock_nanosleep, nanosleep, gettimeofday, time, times, adjtimex.

Nobody may set a clock: the calls check their arguments as Linux does and then fail with EPERM, as in a container
without CAP_SYS_TIME, whatever capabilities the program believes to have: the clocks are the host's.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.args import Ptr, TimespecOut, TimespecPtr, TimevalOut, TimevalPtr
from devices.bus import syscall
from devices.errors import ERESTART_RESTARTBLOCK, ERESTARTNOHAND, Interrupted, SysError
from devices.time.abi import (
    ADJ_ADJTIME,
    ADJ_OFFSET_READONLY,
    ADJ_OFFSET_SINGLESHOT,
    CLOCK_BOOTTIME,
    CLOCK_BOOTTIME_ALARM,
    CLOCK_MONOTONIC,
    CLOCK_PROCESS_CPUTIME_ID,
    CLOCK_REALTIME,
    CLOCK_REALTIME_ALARM,
    CLOCK_TAI,
    NSEC_PER_SEC,
    NSEC_PER_USEC,
    TIMER_ABSTIME,
    TIMESPEC,
    TIMEVAL,
    TIMEX_SIZE,
    TIMEZONE,
    TMS,
    USEC_PER_SEC,
    USER_HZ,
    ClockId,
    TimerFlags,
    read_timespec,
    write_timespec,
)
from devices.time.clock import CPUCLOCK_PERTHREAD, is_device_clock
from devices.time.cputime import process_cpu_ns
from devices.time.sleep import Deadline, sleep_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.task.task import Task

TICK_NS = NSEC_PER_SEC // USER_HZ
SLEEPABLE = (CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI)
ALARMS = (CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM)
CPU_POLL_NS = 1_000_000
"""Shortest sleep until a CPU clock is looked at again."""

# Reading


@syscall("clock_gettime")
def clock_gettime(task: Task, clockid: ClockId, tp: TimespecOut) -> int:
    """man 2 clock_gettime."""
    now = task.kernel.clock.now(clockid, task)
    task.memory.write(tp, TIMESPEC.pack(now // NSEC_PER_SEC, now % NSEC_PER_SEC))
    return 0


@syscall("clock_getres")
def clock_getres(task: Task, clockid: ClockId, res: TimespecOut) -> int:
    """man 2 clock_getres."""
    ns = task.kernel.clock.resolution(clockid, task)
    if res:
        write_timespec(task.memory, res, ns)
    return 0


@syscall("gettimeofday")
def gettimeofday(task: Task, tv: TimevalOut, tz: Ptr) -> int:
    """man 2 gettimeofday. The kernel's time zone is never set."""
    if tv:
        seconds, ns = divmod(task.kernel.clock.now(CLOCK_REALTIME, task), NSEC_PER_SEC)
        task.memory.write(tv, TIMEVAL.pack(seconds, ns // NSEC_PER_USEC))
    if tz:
        task.memory.write(tz, TIMEZONE.pack(0, 0))
    return 0


@syscall("time")
def time(task: Task, tloc: Ptr) -> int:
    """man 2 time."""
    seconds = task.kernel.clock.now(CLOCK_REALTIME, task) // NSEC_PER_SEC
    if tloc:
        task.memory.write_u64(tloc, seconds)
    return seconds


@syscall("times")
def times(task: Task, buf: Ptr) -> int:
    """man 2 times. All CPU time is user time, see getrusage."""
    if buf:
        children = task.process.children_ns // TICK_NS
        task.memory.write(buf, TMS.pack(process_cpu_ns(task.process) // TICK_NS, 0, children, 0))
    return task.kernel.clock.now(CLOCK_MONOTONIC, task) // TICK_NS


# Sleeping


@syscall("nanosleep", in_place=False)
def nanosleep(task: Task, req: TimespecPtr, rem: Ptr) -> int:
    """man 2 nanosleep."""
    ns = read_timespec(task.memory, req)
    return _sleep(task, Deadline.after(task, CLOCK_MONOTONIC, ns), rem)


@syscall("clock_nanosleep", in_place=False)
def clock_nanosleep(task: Task, clockid: ClockId, flags: TimerFlags, request: TimespecPtr, remain: Ptr) -> int:
    """man 2 clock_nanosleep; unknown flags are ignored, as Linux does."""
    sleep = _sleeper(task, clockid)
    ns = read_timespec(task.memory, request)
    if flags & TIMER_ABSTIME:
        return sleep(task, Deadline(clockid, ns), None)
    # A relative sleep is not changed by the setting of the clock: it goes by CLOCK_MONOTONIC.
    clock = CLOCK_MONOTONIC if clockid == CLOCK_REALTIME else clockid
    return sleep(task, Deadline.after(task, clock, ns), remain)


def _sleeper(task: Task, clock: int) -> Callable[[Task, Deadline, int | None], int]:
    """What sleeps by a clock. EINVAL for one that is not there, EOPNOTSUPP for one that cannot be slept by."""
    if clock in SLEEPABLE:
        return _sleep
    if clock == CLOCK_PROCESS_CPUTIME_ID:
        return _sleep_cpu
    if clock < 0 and not is_device_clock(clock):
        return _sleep_cpu_checked
    if clock >= 0 and clock not in ALARMS:
        task.kernel.clock.resolution(clock, task)
    raise SysError(errno.EOPNOTSUPP, "nobody can sleep by this clock")


def _sleep(task: Task, deadline: Deadline, remain: int | None) -> int:
    """Sleep until `deadline`. `remain` None: an absolute sleep, else where to write what is left when a signal comes
    (0: nowhere)."""
    if deadline.left(task) <= 0:
        return 0
    restart = ERESTARTNOHAND if remain is None else ERESTART_RESTARTBLOCK
    try:
        sleep_until(task, deadline, restart)
    except Interrupted:
        if deadline.left(task) <= 0:
            return 0
        if remain is not None:
            _interrupted(task, deadline, remain, _sleep)
        raise
    return 0


def _interrupted(
    task: Task, deadline: Deadline, remain: int, sleep: Callable[[Task, Deadline, int | None], int]
) -> None:
    """A signal cut a relative sleep short: tell what is left, and have restart_syscall(2) sleep on. EFAULT."""
    if remain:
        write_timespec(task.memory, remain, max(deadline.left(task), 0))
    task.restart_block = lambda again: sleep(again, deadline, remain)


def _sleep_cpu(task: Task, deadline: Deadline, remain: int | None) -> int:
    """Sleep until a CPU clock has reached a time: it cannot do so before the tasks that it counts have run for long
    enough on all CPUs, so look again then."""
    restart = ERESTARTNOHAND if remain is None else ERESTART_RESTARTBLOCK
    clock = task.kernel.clock
    try:
        while (left := deadline.left(task)) > 0:
            task.sleep(clock.monotonic_ns() + max(left // max(len(task.kernel.tasks), 1), CPU_POLL_NS), restart)
    except Interrupted:
        if remain is not None:
            _interrupted(task, deadline, remain, _sleep_cpu)
        raise
    return 0


def _sleep_cpu_checked(task: Task, deadline: Deadline, remain: int | None) -> int:
    """posix_cpu_nsleep(): a thread cannot wait for its own CPU time."""
    clock = deadline.clock
    if clock & CPUCLOCK_PERTHREAD and ~(clock >> 3) in (0, task.tid):
        raise SysError(errno.EINVAL, "one's own CPU clock")
    task.kernel.clock.resolution(clock, task)
    return _sleep_cpu(task, deadline, remain)


# Setting


@syscall("clock_settime")
def clock_settime(task: Task, clockid: ClockId, tp: TimespecPtr) -> int:
    """man 2 clock_settime: EPERM, after the checks of the arguments."""
    if clockid != CLOCK_REALTIME and (clockid >= 0 or is_device_clock(clockid)):
        raise SysError(errno.EINVAL, "this clock cannot be set")
    read_timespec(task.memory, tp)
    if clockid < 0:
        task.kernel.clock.resolution(clockid, task)
    raise SysError(errno.EPERM, "the clocks are the host's")


@syscall("settimeofday")
def settimeofday(task: Task, tv: TimevalPtr, tz: Ptr) -> int:
    """man 2 settimeofday: EPERM, after the checks of the arguments."""
    if tv:
        seconds, microseconds = task.memory.read_struct(tv, TIMEVAL)
        if not 0 <= microseconds <= USEC_PER_SEC:
            raise SysError(errno.EINVAL, "timeval out of range")
        if tz:
            task.memory.read(tz, TIMEZONE.size)
        if seconds < 0 or microseconds == USEC_PER_SEC:
            raise SysError(errno.EINVAL, "timeval out of range")
    elif tz:
        task.memory.read(tz, TIMEZONE.size)
    raise SysError(errno.EPERM, "the clocks are the host's")


def _adjust(task: Task, buf: int) -> int:
    """do_adjtimex() for somebody who may only look: the host's state of CLOCK_REALTIME. EFAULT, EINVAL, EPERM."""
    modes = task.memory.read_u32(buf)
    task.memory.read(buf, TIMEX_SIZE)
    if modes & ADJ_ADJTIME:
        if not modes & ADJ_OFFSET_SINGLESHOT:
            raise SysError(errno.EINVAL, "adjtime without its mode")
        if not modes & ADJ_OFFSET_READONLY:
            raise SysError(errno.EPERM, "the clocks are the host's")
    elif modes:
        raise SysError(errno.EPERM, "the clocks are the host's")
    state, raw = _host_adjtimex(modes)
    task.memory.write(buf, raw)
    return state


def _host_adjtimex(modes: int) -> tuple[int, bytes]:
    """adjtimex(2) of the host with `modes` that only read: its result and struct timex."""
    import ctypes

    buffer = bytearray(TIMEX_SIZE)
    buffer[:4] = modes.to_bytes(4, "little")
    libc = ctypes.PyDLL(None, use_errno=True)
    state = int(libc.adjtimex((ctypes.c_char * TIMEX_SIZE).from_buffer(buffer)))
    if state < 0:
        raise SysError(ctypes.get_errno(), "adjtimex on the host")
    return state, bytes(buffer)


@syscall("adjtimex")
def adjtimex(task: Task, buf: Ptr) -> int:
    """man 2 adjtimex: reading works."""
    return _adjust(task, buf)


@syscall("clock_adjtime")
def clock_adjtime(task: Task, clk_id: ClockId, buf: Ptr) -> int:
    """man 2 clock_adjtime: reading CLOCK_REALTIME works."""
    task.memory.read(buf, TIMEX_SIZE)
    if clk_id == CLOCK_REALTIME:
        return _adjust(task, buf)
    if is_device_clock(clk_id):
        raise SysError(errno.EINVAL, "no clock device")
    if clk_id >= 0 and clk_id not in ALARMS:
        task.kernel.clock.resolution(clk_id, task)
    raise SysError(errno.EOPNOTSUPP, "this clock cannot be adjusted")
