"""The calls about time: every clock id, sleeping, what signals do to a sleep, and clocks that nobody may set."""

from __future__ import annotations

import errno
import os
import struct
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import ERESTART_RESTARTBLOCK, ERESTARTNOHAND, Interrupted, SysError
from devices.time import abi
from devices.time.abi import NSEC_PER_SEC, TIMER_ABSTIME, TIMESPEC, read_timespec
from devices.time.cputime import end_task_locked, process_cpu_ns, task_cpu_ns
from devices.time.sleep import Deadline
from tests.unit.devices.running import Machine, machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.task import Task
    from tests.unit.devices.running import Call

CLOCKS = range(-20, 40)


class Times:
    def __init__(self, made: Machine) -> None:
        self.machine = made
        self.memory = made.first.memory
        self.at = made.data
        self.out = made.data + 64
        self.task = made.first

    def call(self, name: str, *arguments: int, task: Task | None = None) -> int:
        try:
            return self.machine.world.call(name, *arguments, task=task)
        except SysError as error:
            return -error.errno

    def set(self, seconds: int, ns: int = 0) -> int:
        self.memory.write(self.at, TIMESPEC.pack(seconds, ns))
        return self.at

    def set_ns(self, ns: int) -> int:
        return self.set(*divmod(ns, NSEC_PER_SEC))

    def get(self, at: int | None = None) -> int:
        seconds, ns = TIMESPEC.unpack(self.memory.read(at or self.out, 16))
        assert 0 <= ns < NSEC_PER_SEC
        return int(seconds * NSEC_PER_SEC + ns)

    def clock(self, clock: int) -> int:
        assert self.call("clock_gettime", clock, self.out) == 0
        return self.get()

    def start(self, name: str, *arguments: int) -> Call:
        return self.machine.start(self.machine.thread(), name, *arguments)


@pytest.fixture
def times() -> Iterator[Times]:
    with machine() as made:
        yield Times(made)


# Reading


@pytest.mark.parametrize(
    "clock",
    [abi.CLOCK_REALTIME, abi.CLOCK_MONOTONIC, abi.CLOCK_MONOTONIC_RAW, abi.CLOCK_BOOTTIME, abi.CLOCK_TAI],
)
def test_without_a_page_the_fine_clocks_are_the_hosts(times: Times, clock: int) -> None:
    before = time.clock_gettime_ns(clock)
    now = times.clock(clock)
    assert before <= now <= time.clock_gettime_ns(clock)


def test_coarse_clocks_are_the_fine_ones_rounded_down(times: Times) -> None:
    tick = times.machine.kernel.clock.host.coarse_ns
    for coarse, fine in (
        (abi.CLOCK_REALTIME_COARSE, abi.CLOCK_REALTIME),
        (abi.CLOCK_MONOTONIC_COARSE, abi.CLOCK_MONOTONIC),
    ):
        before = times.clock(fine)
        now = times.clock(coarse)
        assert now % tick == 0
        assert before - tick < now <= times.clock(fine)


def test_all_ways_to_ask_for_the_wall_clock_agree(times: Times) -> None:
    before = times.clock(abi.CLOCK_REALTIME)
    assert times.call("gettimeofday", times.out, times.at) == 0
    seconds, microseconds = struct.unpack("<qq", times.memory.read(times.out, 16))
    assert times.memory.read(times.at, 8) == bytes(8)
    told = times.call("time", times.out)
    assert times.memory.read_u64(times.out) == told
    assert before // 1000 <= seconds * 10**6 + microseconds
    assert before // NSEC_PER_SEC <= told <= times.clock(abi.CLOCK_REALTIME) // NSEC_PER_SEC
    assert times.call("gettimeofday", 0, 0) == 0
    assert times.call("time", 0) >= told
    assert times.call("gettimeofday", 4096, 0) == times.call("gettimeofday", 0, 4096) == -errno.EFAULT
    assert times.call("time", 4096) == -errno.EFAULT


@pytest.mark.parametrize("clock", CLOCKS)
def test_unknown_clocks_and_bad_addresses(times: Times, clock: int) -> None:
    known = clock in (*range(8), abi.CLOCK_TAI)
    cpu = clock < 0 and clock & 3 != 3
    wanted = 0 if known else -errno.EINVAL
    if cpu:  # of a task that is not there, unless it is the caller
        pid = ~(clock >> 3)
        wanted = 0 if pid in times.machine.kernel.tasks or not pid else -errno.EINVAL
    assert times.call("clock_gettime", clock, times.out) == wanted
    assert times.call("clock_gettime", clock, 4096) == (wanted or -errno.EFAULT)
    assert times.call("clock_getres", clock, times.out) == wanted
    assert times.call("clock_getres", clock, 0) == wanted
    assert times.call("clock_getres", clock, 4096) == (wanted or -errno.EFAULT)


def test_resolutions(times: Times) -> None:
    host = times.machine.kernel.clock.host
    for clocks, wanted in (
        ((0, 1, 4, 7, 11), host.resolution_ns),
        ((5, 6), host.coarse_ns),
        ((2, 3, -6, -2), 1),
        ((-8, -7, -4, -3), host.coarse_ns),
    ):
        for clock in clocks:
            assert times.call("clock_getres", clock, times.out) == 0
            assert times.get() == wanted, clock


# CPU time


def cpu_clock(pid: int, thread: bool, which: int = 2) -> int:
    """MAKE_PROCESS_CPUCLOCK, MAKE_THREAD_CPUCLOCK."""
    return (~pid << 3) | (4 if thread else 0) | which


def burn() -> None:
    end = time.thread_time_ns() + 2_000_000
    while time.thread_time_ns() < end:
        pass


def test_cpu_clocks_count_the_tasks_own_threads(times: Times) -> None:
    before_thread, before_process = times.clock(abi.CLOCK_THREAD_CPUTIME_ID), times.clock(abi.CLOCK_PROCESS_CPUTIME_ID)
    burn()
    after = times.clock(abi.CLOCK_THREAD_CPUTIME_ID)
    assert after - before_thread >= 2_000_000
    assert times.clock(abi.CLOCK_PROCESS_CPUTIME_ID) - before_process >= 2_000_000
    for thread in (False, True):
        for pid in (0, times.task.tid):
            for which in range(3):
                assert times.clock(cpu_clock(pid, thread, which)) >= after


def test_a_sleeping_task_takes_no_cpu_time(times: Times) -> None:
    sleeping = times.machine.thread()

    def body() -> int:
        sleeping.started(sleeping.cpu)
        return times.machine.world.call("pause", task=sleeping)

    call = times.machine.run(sleeping, body)
    assert call.asleep
    before = times.clock(cpu_clock(sleeping.tid, True))
    burn()
    assert times.clock(cpu_clock(sleeping.tid, True)) - before < 1_000_000


def test_other_processes_clocks(times: Times) -> None:
    other = times.machine.world.new_process()
    burn()
    assert times.clock(cpu_clock(other.process.pid, False)) >= 2_000_000
    assert times.call("clock_gettime", cpu_clock(other.tid, True), times.out) == -errno.EINVAL
    thread = times.machine.thread()
    assert times.call("clock_gettime", cpu_clock(thread.tid, True), times.out) == 0
    assert times.call("clock_gettime", cpu_clock(thread.tid, False), times.out) == -errno.EINVAL
    assert times.call("clock_gettime", cpu_clock(thread.tid, False), times.out, task=thread) == 0, (
        "one's own tid will do"
    )
    assert times.call("clock_getres", cpu_clock(thread.tid, False), times.out, task=thread) == -errno.EINVAL
    assert times.call("clock_gettime", cpu_clock(4_000_000, False), times.out) == -errno.EINVAL


def test_ended_tasks_are_counted_on(times: Times) -> None:
    process = times.task.process
    thread = times.machine.thread()
    burn()
    before = process_cpu_ns(process)
    end_task_locked(thread)
    del process.tasks[thread.tid]
    assert process.ended_task_ns >= 2_000_000
    assert process_cpu_ns(process) >= before
    assert task_cpu_ns(thread) == 0


def test_times(times: Times) -> None:
    burn()
    ticks = times.call("times", times.out)
    assert abs(ticks - time.monotonic_ns() // 10**7) <= 1
    user, *rest = struct.unpack("<4q", times.memory.read(times.out, 32))
    assert 0 <= user <= process_cpu_ns(times.task.process) // 10**7
    assert rest == [0, 0, 0]
    assert times.call("times", 0) >= ticks
    assert times.call("times", 4096) == -errno.EFAULT


# Sleeping


@pytest.mark.parametrize("clock", [0, 1, 7, 11])
@pytest.mark.parametrize("absolute", [False, True])
def test_nobody_wakes_early(times: Times, clock: int, absolute: bool) -> None:
    now = times.clock(clock)
    until = now + 3_000_000
    at = times.set_ns(until if absolute else 3_000_000)
    assert times.call("clock_nanosleep", clock, TIMER_ABSTIME if absolute else 0, at, 0) == 0
    assert times.clock(clock) >= until


def test_nanosleep(times: Times) -> None:
    before = times.clock(abi.CLOCK_MONOTONIC)
    assert times.call("nanosleep", times.set_ns(2_000_000), 0) == 0
    assert times.clock(abi.CLOCK_MONOTONIC) - before >= 2_000_000
    assert times.call("nanosleep", times.set(0), 4096) == 0
    assert times.call("nanosleep", 4096, 0) == -errno.EFAULT
    for bad in ((-1, 0), (0, -1), (0, 10**9)):
        assert times.call("nanosleep", times.set(*bad), 0) == -errno.EINVAL


def test_a_time_that_is_over_is_no_sleep(times: Times) -> None:
    assert times.call("clock_nanosleep", 1, TIMER_ABSTIME, times.set(0), 0) == 0
    assert times.call("clock_nanosleep", 0, TIMER_ABSTIME | 64, times.set(1), 0) == 0, "unknown flags are ignored"


@pytest.mark.parametrize("clock", CLOCKS)
def test_clocks_that_nobody_sleeps_by(times: Times, clock: int) -> None:
    result = times.call("clock_nanosleep", clock, TIMER_ABSTIME, times.set(0), 0)
    if clock in (0, 1, 2, 7, 11):
        assert result == 0
    elif clock < 0 and clock & 3 != 3:
        pid = ~(clock >> 3)
        own_thread = bool(clock & 4) and pid in (0, times.task.tid)
        there = not pid or pid in times.machine.kernel.processes or (clock & 4 and pid in times.machine.kernel.tasks)
        assert result == (-errno.EINVAL if own_thread or not there else 0)
    elif clock in (3, 4, 5, 6, 8, 9) or (clock < 0 and clock & 7 == 3):
        assert result == -errno.EOPNOTSUPP
    else:
        assert result == -errno.EINVAL


def test_a_signal_tells_what_is_left_and_the_sleep_goes_on(times: Times) -> None:
    begun = times.clock(abi.CLOCK_MONOTONIC)
    sleeping = times.start("nanosleep", times.set(1000), times.out)
    assert sleeping.asleep
    for _ in range(2):
        times.machine.signal(sleeping.task)
        with pytest.raises(Interrupted) as caught:
            sleeping.result()
        assert caught.value.restart == ERESTART_RESTARTBLOCK
        left = times.get()
        assert 900 * NSEC_PER_SEC < left <= 1000 * NSEC_PER_SEC
        assert left <= begun + 1000 * NSEC_PER_SEC - times.machine.kernel.clock.monotonic_ns() + 10**8
        times.machine.forget_signals(sleeping.task)
        sleeping = times.machine.start(sleeping.task, "restart_syscall")
        assert sleeping.asleep


def test_what_is_left_may_be_unwanted_or_unwritable(times: Times) -> None:
    for remain, outcome in ((0, None), (4096, -errno.EFAULT)):
        sleeping = times.start("clock_nanosleep", 7, 0, times.set(1000), remain)
        times.machine.signal(sleeping.task)
        if outcome is None:
            with pytest.raises(Interrupted):
                sleeping.result()
        else:
            assert sleeping.result() == outcome


def test_an_absolute_sleep_is_restarted_whole_and_tells_nothing(times: Times) -> None:
    times.memory.write(times.out, b"\xee" * 16)
    sleeping = times.start("clock_nanosleep", 0, TIMER_ABSTIME, times.set(1 << 40), times.out)
    times.machine.signal(sleeping.task)
    with pytest.raises(Interrupted) as caught:
        sleeping.result()
    assert caught.value.restart == ERESTARTNOHAND
    assert times.memory.read(times.out, 16) == b"\xee" * 16
    assert sleeping.task.restart_block is None


def test_the_longest_sleep(times: Times) -> None:
    for flags in (0, TIMER_ABSTIME):
        sleeping = times.start("clock_nanosleep", 1, flags, times.set((1 << 63) - 1, 999_999_999), 0)
        assert sleeping.asleep


def test_sleeping_by_the_processes_cpu_time(times: Times) -> None:
    """Somebody of the process has to run for that long."""
    until = process_cpu_ns(times.task.process) + 20_000_000
    sleeping = times.start("clock_nanosleep", 2, TIMER_ABSTIME, times.set_ns(until), 0)
    assert sleeping.asleep
    while process_cpu_ns(times.task.process) < until:
        burn()
    assert sleeping.result() == 0
    for clock, flags in ((2, 0), (cpu_clock(times.task.process.pid, False), 0)):
        sleeping = times.start("clock_nanosleep", clock, flags, times.set(1000), times.out)
        times.machine.signal(sleeping.task)
        with pytest.raises(Interrupted) as caught:
            sleeping.result()
        assert caught.value.restart == ERESTART_RESTARTBLOCK
        assert 900 * NSEC_PER_SEC < times.get() <= 1000 * NSEC_PER_SEC


def test_a_wall_clock_that_is_set_back_does_not_end_a_sleep_early(
    times: Times, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest's clock has the last word, whatever was planned."""
    kernel = times.machine.kernel
    shift = 0
    monkeypatch.setitem(kernel.clock._readers, abi.CLOCK_REALTIME, lambda task: time.time_ns() + shift)
    until = time.time_ns() + 20_000_000
    sleeping = times.start("clock_nanosleep", 0, TIMER_ABSTIME, times.set_ns(until), 0)
    shift = -30_000_000
    assert sleeping.result() == 0
    assert time.time_ns() >= until + 30_000_000


# Setting


def test_nobody_sets_a_clock(times: Times) -> None:
    good = times.set(1000)
    assert times.call("clock_settime", 0, good) == -errno.EPERM
    assert times.call("clock_settime", 0, 4096) == -errno.EFAULT
    assert times.call("clock_settime", 0, times.set(-1)) == -errno.EINVAL
    assert times.call("clock_settime", 0, times.set(0, 10**9)) == -errno.EINVAL
    for clock in (1, 2, 3, 4, 5, 7, 11, 12, -5):
        assert times.call("clock_settime", clock, 4096) == -errno.EINVAL
    assert times.call("clock_settime", cpu_clock(0, True), times.set(1)) == -errno.EPERM
    assert times.call("clock_settime", cpu_clock(4_000_000, True), times.set(1)) == -errno.EINVAL
    assert times.call("settimeofday", times.set(1, 1), 0) == -errno.EPERM
    assert times.call("settimeofday", 0, times.at) == -errno.EPERM
    assert times.call("settimeofday", 0, 0) == -errno.EPERM
    assert times.call("settimeofday", times.set(1, 10**6), 0) == -errno.EINVAL
    assert times.call("settimeofday", times.set(1, -1), 4096) == -errno.EINVAL
    assert times.call("settimeofday", times.set(-1, 1), 0) == -errno.EINVAL
    assert times.call("settimeofday", times.set(1, 1), 4096) == -errno.EFAULT
    assert times.call("settimeofday", 4096, 0) == -errno.EFAULT


def test_adjtimex_reads(times: Times) -> None:
    out = times.at
    for name, arguments in (("adjtimex", (out,)), ("clock_adjtime", (0, out))):
        times.memory.write(out, bytes(208))
        assert 0 <= times.call(name, *arguments) <= 5
        seconds = struct.unpack_from("<q", times.memory.read(out, 208), 72)[0]
        assert abs(seconds - time.time()) < 5
        for modes, wanted in ((1, -errno.EPERM), (0x8000, -errno.EINVAL), (0x8001, -errno.EPERM)):
            times.memory.write_u32(out, modes)
            assert times.call(name, *arguments) == wanted
        times.memory.write_u32(out, 0xA001)
        assert times.call(name, *arguments) >= 0
    assert times.call("adjtimex", 4096) == -errno.EFAULT
    assert times.call("clock_adjtime", 99, 4096) == -errno.EFAULT
    for clock, wanted in (
        (1, errno.EOPNOTSUPP),
        (2, errno.EOPNOTSUPP),
        (-6, errno.EOPNOTSUPP),
        (-5, errno.EINVAL),
        (99, errno.EINVAL),
    ):
        assert times.call("clock_adjtime", clock, out) == -wanted


# Times


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-5, 10**9 + 5))
def test_timespecs(seconds: int, ns: int) -> None:
    class Memory:
        def read(self, address: int, size: int) -> bytes:
            return TIMESPEC.pack(seconds, ns)

    memory: object = Memory()
    if seconds < 0 or not 0 <= ns < 10**9:
        with pytest.raises(SysError):
            read_timespec(memory, 0)  # type: ignore[arg-type]
    else:
        assert read_timespec(memory, 0) == min(seconds * 10**9 + ns, abi.KTIME_MAX)  # type: ignore[arg-type]


def test_a_deadline_does_not_overflow(times: Times) -> None:
    assert Deadline.after(times.task, 1, abi.KTIME_MAX).ns == abi.KTIME_MAX
    assert Deadline(1, 0).left(times.task) < 0


def test_constants_are_the_headers() -> None:
    for name, value in vars(abi).items():
        if name.startswith("CLOCK_") and hasattr(time, name):
            assert getattr(time, name) == value, name
    assert os.sysconf("SC_CLK_TCK") == abi.USER_HZ
