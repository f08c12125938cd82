"""Policies, priorities, niceness and CPUs: what is checked, kept and told."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest

from devices.errors import LeaveGuest, SysError
from devices.task import rlimits, scheduling
from devices.task.policy import SCHED_DEADLINE, SCHED_FIFO, SCHED_IDLE, SCHED_NORMAL, SCHED_RR, Scheduling
from devices.task.process import Credentials
from devices.time.abi import TIMESPEC
from tests.unit.devices.support import World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.task import Task

NOBODY = 4_000_000


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.close()


def call(world: World, name: str, *arguments: int, task: Task | None = None) -> int:
    try:
        return world.call(name, *arguments, task=task)
    except SysError as error:
        return -error.errno


def param(world: World, priority: int) -> int:
    world.task.memory.write(world.data, struct.pack("<i", priority))
    return world.data


def attr(
    world: World,
    policy: int = 0,
    flags: int = 0,
    nice: int = 0,
    priority: int = 0,
    times: tuple[int, int, int] = (0, 0, 0),
    size: int = 56,
    tail: bytes = b"",
) -> int:
    raw = scheduling.ATTR.pack(size, policy, flags, nice, priority, *times, 0, 0)
    world.task.memory.write(world.data, raw + tail)
    return world.data


# Policies


def test_policies_and_their_priorities(world: World) -> None:
    for policy, low, high in ((0, 0, 0), (1, 1, 99), (2, 1, 99), (3, 0, 0), (5, 0, 0), (6, 0, 0)):
        assert call(world, "sched_get_priority_min", policy) == low
        assert call(world, "sched_get_priority_max", policy) == high
    for policy in (-1, 4, 7, 8, 0x4000_0000):
        assert call(world, "sched_get_priority_min", policy) == -errno.EINVAL
        assert call(world, "sched_get_priority_max", policy) == -errno.EINVAL
    for policy, good, bad in ((0, 0, 1), (1, 1, 0), (2, 99, 100), (3, 0, 1), (5, 0, 99), (1, 50, -1)):
        assert call(world, "sched_setscheduler", 0, policy, param(world, bad)) == -errno.EINVAL
        assert call(world, "sched_setscheduler", 0, policy, param(world, good)) == 0
        assert call(world, "sched_getscheduler", 0) == policy
        assert call(world, "sched_getparam", world.task.tid, world.data + 8) == 0
        assert world.task.memory.read_i32(world.data + 8) == good


def test_errors_of_the_policy_calls(world: World) -> None:
    good = param(world, 0)
    assert call(world, "sched_setscheduler", 0, -1, good) == -errno.EINVAL
    assert call(world, "sched_setscheduler", 0, 4, good) == -errno.EINVAL
    for name, arguments in (("sched_setscheduler", (0,)), ("sched_setparam", ()), ("sched_getparam", ())):
        assert call(world, name, 0, *arguments, 0) == -errno.EINVAL
        assert call(world, name, -1, *arguments, good) == -errno.EINVAL
        assert call(world, name, NOBODY, *arguments, good) == -errno.ESRCH
        assert call(world, name, 0, *arguments, 4096) == -errno.EFAULT
    assert call(world, "sched_getscheduler", -1) == -errno.EINVAL
    assert call(world, "sched_getscheduler", NOBODY) == -errno.ESRCH
    assert call(world, "sched_setparam", 0, param(world, 1)) == -errno.EINVAL


def test_reset_on_fork(world: World) -> None:
    assert call(world, "sched_setscheduler", 0, SCHED_FIFO | 0x4000_0000, param(world, 7)) == 0
    assert call(world, "sched_getscheduler", 0) == SCHED_FIFO | 0x4000_0000
    child = world.task.scheduling.for_child()
    assert (child.policy, child.priority, child.nice, child.reset_on_fork) == (SCHED_NORMAL, 0, 0, False)
    plain = Scheduling(2)
    plain.nice, plain.reset_on_fork, plain.affinity = -5, True, 1
    child = plain.for_child()
    assert (child.nice, child.affinity) == (0, 1)
    plain.reset_on_fork = False
    assert plain.for_child().nice == -5


def test_what_an_ordinary_user_may(world: World) -> None:
    task = world.task
    task.credentials = Credentials(1000)
    limits = task.process.rlimits
    assert call(world, "sched_setscheduler", 0, SCHED_FIFO, param(world, 1)) == -errno.EPERM
    limits[rlimits.RLIMIT_RTPRIO] = (10, 10)
    assert call(world, "sched_setscheduler", 0, SCHED_FIFO, param(world, 11)) == -errno.EPERM
    assert call(world, "sched_setscheduler", 0, SCHED_FIFO, param(world, 10)) == 0
    assert call(world, "sched_setscheduler", 0, SCHED_IDLE, param(world, 0)) == 0
    assert call(world, "sched_setscheduler", 0, SCHED_NORMAL, param(world, 0)) == -errno.EPERM, "out of SCHED_IDLE"
    limits[rlimits.RLIMIT_NICE] = (20, 20)
    assert call(world, "sched_setscheduler", 0, SCHED_NORMAL, param(world, 0)) == 0
    stranger = world.new_process()
    assert call(world, "sched_setscheduler", stranger.tid, SCHED_NORMAL, param(world, 0)) == -errno.EPERM
    stranger.credentials = Credentials(1000)
    assert call(world, "sched_setscheduler", stranger.tid, SCHED_NORMAL, param(world, 0)) == 0
    stranger.credentials.permitted = 1
    assert call(world, "sched_setscheduler", stranger.tid, SCHED_NORMAL, param(world, 0)) == -errno.EPERM
    task.scheduling.reset_on_fork = True
    assert call(world, "sched_setscheduler", 0, SCHED_NORMAL, param(world, 0)) == -errno.EPERM


def test_attributes(world: World) -> None:
    memory = world.task.memory
    out = world.data + 512
    assert call(world, "sched_setattr", 0, attr(world, SCHED_RR, 1, 0, 42), 0) == 0
    memory.write(out, b"\xee" * 64)
    assert call(world, "sched_getattr", 0, out, 48, 0) == 0
    raw = memory.read(out, 64)
    assert struct.unpack("<IIQiI", raw[:24]) == (48, SCHED_RR, 1, 0, 42)
    assert raw[48:] == b"\xee" * 16
    assert call(world, "sched_getattr", 0, out, 4096, 0) == 0
    assert memory.read_u32(out) == 56
    assert call(world, "sched_setattr", 0, attr(world, 0, 0, 99), 0) == 0
    assert world.task.scheduling.nice == 19
    assert call(world, "sched_setattr", 0, attr(world, 0, 0x10, -20), 0) == 0
    assert world.task.scheduling.nice == 19, "parameters kept"
    assert call(world, "sched_setattr", 0, attr(world, 77, 0x08, 3), 0) == 0
    assert (world.task.scheduling.policy, world.task.scheduling.nice) == (0, 3), "policy kept"


def test_errors_of_attributes(world: World) -> None:
    out = world.data + 512
    assert call(world, "sched_setattr", 0, 0, 0) == -errno.EINVAL
    assert call(world, "sched_setattr", -1, attr(world), 0) == -errno.EINVAL
    assert call(world, "sched_setattr", 0, attr(world), 1) == -errno.EINVAL
    assert call(world, "sched_setattr", NOBODY, attr(world), 0) == -errno.ESRCH
    assert call(world, "sched_setattr", 0, 4096, 0) == -errno.EFAULT
    assert call(world, "sched_setattr", 0, attr(world, -1 & 0xFFFF_FFFF), 0) == -errno.EINVAL
    assert call(world, "sched_setattr", 0, attr(world, 0, 1 << 40), 0) == -errno.EINVAL
    assert call(world, "sched_setattr", 0, attr(world, 0, 0x20), 0) == -errno.EOPNOTSUPP
    assert call(world, "sched_setattr", 0, attr(world, 0, 0x20, size=48), 0) == -errno.EINVAL
    for size, tail in ((47, b""), (4097, b""), (64, b"\0" * 7 + b"\1")):
        assert call(world, "sched_setattr", 0, attr(world, size=size, tail=tail), 0) == -errno.E2BIG
        assert world.task.memory.read_u32(world.data) == 56
    assert call(world, "sched_setattr", 0, attr(world, size=64, tail=bytes(8)), 0) == 0
    assert call(world, "sched_setattr", 0, attr(world, size=0), 0) == 0
    for size in (47, 4097):
        assert call(world, "sched_getattr", 0, out, size, 0) == -errno.EINVAL
    assert call(world, "sched_getattr", 0, out, 48, 1) == -errno.EINVAL
    assert call(world, "sched_getattr", 0, 0, 48, 0) == -errno.EINVAL
    assert call(world, "sched_getattr", NOBODY, out, 48, 0) == -errno.ESRCH
    assert call(world, "sched_getattr", 0, 4096, 48, 0) == -errno.EFAULT


def test_deadlines_are_checked_and_not_admitted(world: World) -> None:
    ms = 1_000_000
    for bad in ((0, 0, 0), (1023, ms, ms), (2 * ms, ms, ms), (ms, 2 * ms, ms), (2000, 3000, 4000), (ms, ms, 1 << 63)):
        assert call(world, "sched_setattr", 0, attr(world, SCHED_DEADLINE, times=bad), 0) == -errno.EINVAL
    good = attr(world, SCHED_DEADLINE, times=(ms, 10 * ms, 0))
    assert call(world, "sched_setattr", 0, good, 0) == -errno.EBUSY
    world.task.credentials = Credentials(1000)
    assert call(world, "sched_setattr", 0, good, 0) == -errno.EPERM


def test_intervals(world: World) -> None:
    memory = world.task.memory
    for policy, priority, ns in ((SCHED_RR, 1, 100_000_000), (SCHED_FIFO, 1, 0), (SCHED_NORMAL, 0, 4_000_000)):
        assert call(world, "sched_setscheduler", 0, policy, param(world, priority)) == 0
        assert call(world, "sched_rr_get_interval", 0, world.data + 16) == 0
        assert TIMESPEC.unpack(memory.read(world.data + 16, 16)) == (0, ns)
    assert call(world, "sched_rr_get_interval", -1, world.data) == -errno.EINVAL
    assert call(world, "sched_rr_get_interval", NOBODY, world.data) == -errno.ESRCH
    assert call(world, "sched_rr_get_interval", 0, 4096) == -errno.EFAULT


def test_yield_leaves_the_kernel_lock_for_a_moment(world: World) -> None:
    assert call(world, "sched_yield") == 0
    assert world.kernel.lock.locked()
    world.task.in_place = True
    with pytest.raises(LeaveGuest):
        world.call("sched_yield")
    world.task.in_place = False


# CPUs


def test_affinity(world: World) -> None:
    memory = world.task.memory
    assert world.kernel.cpus == 2
    memory.write(world.data, b"\xff" * 32)
    assert call(world, "sched_getaffinity", 0, 128, world.data) == 8
    assert memory.read(world.data, 9) == b"\3" + bytes(7) + b"\xff"
    memory.write(world.data, b"\2")
    assert call(world, "sched_setaffinity", 0, 1, world.data) == 0
    assert call(world, "sched_getaffinity", 0, 8, world.data) == 8
    assert memory.read_u64(world.data) == 2
    assert call(world, "getcpu", world.data, world.data + 4, 0) == 0
    assert memory.read_u64(world.data) == 1
    assert call(world, "getcpu", 0, 0, 0) == 0
    assert call(world, "getcpu", 4096, 0, 0) == -errno.EFAULT
    memory.write(world.data, b"\xff" * 4096)
    assert call(world, "sched_setaffinity", 0, 4096, world.data) == 0
    assert world.task.scheduling.affinity == 3


def test_errors_of_affinity(world: World) -> None:
    memory = world.task.memory
    for size in (0, 4, 12, 1 << 29, 1 << 31):
        assert call(world, "sched_getaffinity", 0, size, world.data) == -errno.EINVAL, size
    assert call(world, "sched_getaffinity", NOBODY, 8, world.data) == -errno.ESRCH
    assert call(world, "sched_getaffinity", -1, 8, world.data) == -errno.ESRCH
    assert call(world, "sched_getaffinity", 0, 8, 4096) == -errno.EFAULT
    memory.write(world.data, b"\x0c" + bytes(7))
    assert call(world, "sched_setaffinity", 0, 8, world.data) == -errno.EINVAL, "no CPU of the machine"
    assert call(world, "sched_setaffinity", 0, 0, 4096) == -errno.EINVAL, "an empty mask"
    assert call(world, "sched_setaffinity", 0, 8, 4096) == -errno.EFAULT
    memory.write(world.data, b"\1")
    assert call(world, "sched_setaffinity", NOBODY, 8, world.data) == -errno.ESRCH
    stranger = world.new_process()
    world.task.credentials = Credentials(1000)
    assert call(world, "sched_setaffinity", stranger.tid, 8, world.data) == -errno.EPERM


# Niceness


def test_niceness(world: World) -> None:
    assert call(world, "getpriority", 0, 0) == 20
    assert call(world, "setpriority", 0, 0, -100) == 0
    assert call(world, "getpriority", 0, world.task.tid) == 40
    assert call(world, "setpriority", 0, 0, 100) == 0
    assert call(world, "getpriority", 0, 0) == 1
    other = world.new_process()
    other.scheduling.nice = -3
    assert call(world, "getpriority", 2, 0) == 23, "the best of the user's"
    assert call(world, "getpriority", 1, other.process.pgid) == 23
    assert call(world, "setpriority", 2, 0, 5) == 0
    assert (world.task.scheduling.nice, other.scheduling.nice) == (5, 5)


def test_errors_of_niceness(world: World) -> None:
    for which in (-1, 3):
        assert call(world, "getpriority", which, 0) == -errno.EINVAL
        assert call(world, "setpriority", which, 0, 0) == -errno.EINVAL
    for which in (0, 1, 2):
        assert call(world, "getpriority", which, NOBODY) == -errno.ESRCH
        assert call(world, "setpriority", which, NOBODY, 0) == -errno.ESRCH
    stranger = world.new_process()
    world.task.credentials = Credentials(1000)
    assert call(world, "setpriority", 0, stranger.tid, 0) == -errno.EPERM
    assert call(world, "setpriority", 0, 0, -1) == -errno.EACCES
    world.task.process.rlimits[rlimits.RLIMIT_NICE] = (25, 25)
    assert call(world, "setpriority", 0, 0, -5) == 0
    assert call(world, "setpriority", 0, 0, -6) == -errno.EACCES
    assert call(world, "setpriority", 0, 0, 1) == 0
