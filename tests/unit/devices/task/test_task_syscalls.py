"""Names, limits, resources, random bytes, and prctl."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest

from devices.errors import LeaveGuest, SysError
from devices.random import Random
from devices.task import prctl, rlimits, syscalls
from devices.task.process import Credentials
from devices.task.rlimits import RLIM_INFINITY
from tests.unit.devices.running import machine
from tests.unit.devices.support import World
from vmm.layout import TASK_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.task import Task


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


# Ids and names


def test_ids(world: World) -> None:
    task = world.task
    assert call(world, "getpid") == task.process.pid
    assert call(world, "gettid") == task.tid
    assert call(world, "getppid") == task.process.parent_pid
    assert call(world, "set_tid_address", 0x1234) == task.tid
    assert task.clear_child_tid == 0x1234


def test_uname(world: World) -> None:
    assert call(world, "uname", world.data) == 0
    raw = world.task.memory.read(world.data, 390)
    fields = [raw[65 * i : 65 * i + 65].rstrip(b"\0") for i in range(6)]
    assert fields == [b"Linux", b"pyvmm", b"6.1.0-pyvmm", b"#1 SMP pyvmm", b"x86_64", b"(none)"]
    assert call(world, "uname", 4096) == -errno.EFAULT


@pytest.mark.parametrize("name", ["sethostname", "setdomainname"])
def test_names_of_the_machine(world: World, name: str) -> None:
    world.task.memory.write(world.data, b"x" * 65)
    for length in (64, 0, 5):
        assert call(world, name, world.data, length) == 0
        kernel = world.kernel
        assert (kernel.hostname if name == "sethostname" else kernel.domainname) == b"x" * length
        assert call(world, "uname", world.data + 4096) == 0
    for length in (65, -1):
        assert call(world, name, world.data, length) == -errno.EINVAL
    assert call(world, name, 4096, 1) == -errno.EFAULT
    world.task.credentials = Credentials(1)
    assert call(world, name, 4096, 99) == -errno.EPERM


# Limits


def test_limits_at_the_start(world: World) -> None:
    limits = world.task.process.rlimits
    assert len(limits) == rlimits.RLIM_NLIMITS
    assert limits[rlimits.RLIMIT_STACK] == (8 << 20, RLIM_INFINITY)
    assert limits[rlimits.RLIMIT_NPROC] == (50, 50)
    assert all(soft <= hard for soft, hard in limits)
    assert world.new_process().process.rlimits is not limits


def test_reading_and_setting_limits(world: World) -> None:
    memory = world.task.memory
    new, old = world.data, world.data + 64

    def limit(soft: int, hard: int) -> int:
        memory.write(new, struct.pack("<QQ", soft, hard))
        return new

    assert call(world, "prlimit64", 0, 7, limit(10, 20), old) == 0
    assert struct.unpack("<QQ", memory.read(old, 16)) == (1024, 1 << 20)
    assert call(world, "getrlimit", 7, old) == 0
    assert struct.unpack("<QQ", memory.read(old, 16)) == (10, 20)
    assert call(world, "setrlimit", 7, limit(20, 20)) == 0
    assert call(world, "setrlimit", 7, limit(21, 20)) == -errno.EINVAL
    assert call(world, "setrlimit", 7, limit(1, (1 << 20) + 1)) == -errno.EPERM
    assert call(world, "setrlimit", 16, limit(1, 1)) == -errno.EINVAL
    assert call(world, "getrlimit", 1 << 31, old) == -errno.EINVAL
    assert call(world, "setrlimit", 99, 4096) == -errno.EFAULT
    assert call(world, "getrlimit", 0, 4096) == -errno.EFAULT
    assert call(world, "prlimit64", 4_000_000, 7, 0, old) == -errno.ESRCH
    assert call(world, "prlimit64", 0, 7, 4096, old) == -errno.EFAULT
    world.task.credentials = Credentials(1)
    assert call(world, "setrlimit", 7, limit(5, 21)) == -errno.EPERM
    assert call(world, "setrlimit", 7, limit(5, 19)) == 0
    stranger = world.new_process()
    assert call(world, "prlimit64", stranger.tid, 7, 0, old) == -errno.EPERM
    stranger.credentials = Credentials(1)
    stranger.credentials.gid = stranger.credentials.egid = stranger.credentials.sgid = 0
    assert call(world, "prlimit64", stranger.tid, 7, 0, old) == 0


def test_limits_bind_where_they_are_used(world: World) -> None:
    """The address space looks at the same list."""
    world.task.memory.write(world.data, struct.pack("<QQ", 1 << 20, 1 << 20))
    assert call(world, "setrlimit", rlimits.RLIMIT_AS, world.data) == 0
    assert call(world, "mmap", 0, 64 << 20, 3, 0x22, -1, 0) == -errno.ENOMEM


# Resources


def test_getrusage(world: World) -> None:
    task = world.task
    total = sum(range(200_000))
    assert total
    task.memory.write(world.data, bytes(144))
    for who in (0, 1):
        assert call(world, "getrusage", who, world.data) == 0
        fields = struct.unpack("<18q", task.memory.read(world.data, 144))
        assert fields[0] * 10**6 + fields[1] > 0
        assert 0 <= fields[1] < 10**6
        assert fields[4] == task.memory.resident * 4
    assert call(world, "getrusage", -1, world.data) == 0
    assert task.memory.read(world.data, 144) == bytes(144)
    assert call(world, "getrusage", 2, 4096) == -errno.EINVAL
    assert call(world, "getrusage", 0, 4096) == -errno.EFAULT


def test_sysinfo(world: World) -> None:
    assert call(world, "sysinfo", world.data) == 0
    raw = world.task.memory.read(world.data, 112)
    uptime, _, _, _, total, free = struct.unpack("<q5Q", raw[:48])
    assert uptime > 0
    assert total == world.kernel.memory.total << 12
    assert 0 < free < total
    assert struct.unpack("<H", raw[80:82]) == (1,)
    assert struct.unpack("<I", raw[104:108]) == (1,)
    assert call(world, "sysinfo", 4096) == -errno.EFAULT


# Random bytes


class Counting(Random):
    """A source that can be told from the host's."""

    def __init__(self) -> None:
        self.made = 0

    def bytes(self, count: int) -> bytes:
        self.made += count
        return b"\x5a" * count


def test_getrandom(world: World) -> None:
    memory = world.task.memory
    world.kernel.random = source = Counting()
    assert call(world, "getrandom", world.data + 4090, 100, 0) == 100
    assert memory.read(world.data + 4089, 102) == b"\0" + b"\x5a" * 100 + b"\0"
    assert call(world, "getrandom", world.data, 0, 0) == 0
    assert call(world, "getrandom", 0, 0, 0) == 0
    for flags in (1, 2, 3, 4, 5):
        assert call(world, "getrandom", world.data, 8, flags) == 8
    for flags in (6, 7, 8, 1 << 31):
        assert call(world, "getrandom", world.data, 8, flags) == -errno.EINVAL
    assert source.made == 140
    assert call(world, "getrandom", 4096, 8, 0) == -errno.EFAULT
    assert call(world, "getrandom", TASK_SIZE - 4, 8, 0) == -errno.EFAULT
    assert call(world, "getrandom", TASK_SIZE - (1 << 20), (1 << 64) - 1, 0) == -errno.EFAULT
    assert call(world, "munmap", world.data + 8192, 4096) == 0
    assert call(world, "getrandom", world.data + 8192 - 4, 8, 0) == 4, "what fits"
    assert call(world, "getrandom", world.data, (1 << 64) - 1, 0) == 8192


def test_a_long_getrandom_leaves_the_lock_and_ends_with_a_signal() -> None:
    with machine() as made:
        world, task = made.world, made.first
        size = 3 * syscalls.RANDOM_CHUNK
        at = task.memory.mmap(0, size, 3, 0x22)
        task.in_place = True
        with pytest.raises(LeaveGuest):
            world.call("getrandom", at, size, 0)
        task.in_place = False
        assert world.call("getrandom", at, size, 0) == size
        world.kernel.random = source = Counting()
        world.call("munmap", at + size - 4096, 4096)
        assert world.call("getrandom", at, size, 0) == size - 4096, "up to the end of the memory"
        made.signal(task)
        source.made = 0
        assert world.call("getrandom", at, size, 0) == syscalls.RANDOM_CHUNK == source.made


# prctl


def option(world: World, *arguments: int) -> int:
    return call(world, "prctl", *arguments)


def test_names_of_tasks(world: World) -> None:
    memory = world.task.memory
    for name in (b"short", b"fifteen bytes..", b"more than fifteen bytes", b""):
        memory.write(world.data, name + b"\0")
        assert option(world, prctl.PR_SET_NAME, world.data) == 0
        assert world.task.comm == name[:15]
        memory.write(world.data, b"\xff" * 32)
        assert option(world, prctl.PR_GET_NAME, world.data) == 0
        assert memory.read(world.data, 17) == name[:15].ljust(16, b"\0") + b"\xff"
    end = world.data + (1 << 16)
    memory.write(end - 4, b"abc\0")
    assert option(world, prctl.PR_SET_NAME, end - 4) == 0
    memory.write(end - 4, b"abcd")
    assert option(world, prctl.PR_SET_NAME, end - 4) == -errno.EFAULT
    assert option(world, prctl.PR_SET_NAME, 0) == -errno.EFAULT
    assert option(world, prctl.PR_GET_NAME, 0) == -errno.EFAULT


def test_settings(world: World) -> None:
    task, memory = world.task, world.task.memory
    assert option(world, prctl.PR_GET_DUMPABLE) == 1
    assert option(world, prctl.PR_SET_DUMPABLE, 2) == -errno.EINVAL
    assert option(world, prctl.PR_SET_DUMPABLE, 0) == 0
    assert option(world, prctl.PR_GET_DUMPABLE) == 0
    assert option(world, prctl.PR_SET_PDEATHSIG, 65) == -errno.EINVAL
    assert option(world, prctl.PR_SET_PDEATHSIG, 64) == 0
    assert option(world, prctl.PR_GET_PDEATHSIG, world.data) == 0
    assert memory.read_u32(world.data) == 64
    assert option(world, prctl.PR_GET_TIMERSLACK) == 50_000
    assert option(world, prctl.PR_SET_TIMERSLACK, 7) == 0
    assert option(world, prctl.PR_GET_TIMERSLACK) == 7
    assert option(world, prctl.PR_SET_TIMERSLACK, 0) == 0
    assert option(world, prctl.PR_GET_TIMERSLACK) == 50_000
    assert option(world, prctl.PR_GET_TIMING) == 0
    assert option(world, prctl.PR_SET_TIMING, 1) == -errno.EINVAL
    assert option(world, prctl.PR_GET_TSC, world.data) == 0
    assert memory.read_u32(world.data) == 1
    assert option(world, prctl.PR_SET_TSC, 2) == -errno.EINVAL
    assert option(world, prctl.PR_SET_CHILD_SUBREAPER, 5) == 0
    assert option(world, prctl.PR_GET_CHILD_SUBREAPER, world.data) == 0
    assert memory.read_u32(world.data) == 1
    assert option(world, prctl.PR_GET_CHILD_SUBREAPER, 4096) == -errno.EFAULT
    task.clear_child_tid = 0x7777
    assert option(world, prctl.PR_GET_TID_ADDRESS, world.data) == 0
    assert memory.read_u64(world.data) == 0x7777


def test_settings_that_take_no_more_arguments(world: World) -> None:
    for get, set_ in (
        (prctl.PR_GET_NO_NEW_PRIVS, prctl.PR_SET_NO_NEW_PRIVS),
        (prctl.PR_GET_THP_DISABLE, prctl.PR_SET_THP_DISABLE),
    ):
        assert option(world, get) == 0
        assert option(world, set_, 1, 0, 0, 1) == -errno.EINVAL
        assert option(world, get, 1) == -errno.EINVAL
        assert option(world, set_, 1) == 0
        assert option(world, get) == 1
    assert option(world, prctl.PR_SET_NO_NEW_PRIVS, 0) == -errno.EINVAL
    assert option(world, prctl.PR_SET_THP_DISABLE, 0) == 0


def test_unknown_options_are_einval(world: World) -> None:
    known = set(prctl.OPTIONS)
    for number in [*range(-1, 100), 0x53564D41, 0x59616D61, 1 << 31]:
        if number not in known:
            assert option(world, number, 1, 2, 3, 4) == -errno.EINVAL
