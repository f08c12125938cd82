"""Calls about ids, groups and sessions, beyond the rules that test_credentials.py compares with the host's kernel."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest

from devices.errors import SysError
from devices.task.process import Credentials
from tests.unit.devices.support import World

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


def who(uid: int, euid: int, suid: int) -> Credentials:
    found = Credentials(uid)
    found.euid, found.suid = euid, suid
    return found


def test_ids_are_told(world: World) -> None:
    found = world.task.credentials = Credentials()
    found.uid, found.euid, found.suid, found.gid, found.egid, found.sgid = 1, 2, 3, 4, 5, (1 << 32) - 2
    assert [call(world, name) for name in ("getuid", "geteuid", "getgid", "getegid")] == [1, 2, 4, 5]
    assert call(world, "getresuid", world.data, world.data + 4, world.data + 8) == 0
    assert struct.unpack("<3I", world.task.memory.read(world.data, 12)) == (1, 2, 3)
    assert call(world, "getresgid", world.data, world.data + 4, world.data + 8) == 0
    assert struct.unpack("<3I", world.task.memory.read(world.data, 12)) == (4, 5, (1 << 32) - 2)
    assert call(world, "getresuid", world.data, 4096, world.data) == -errno.EFAULT


def test_groups_are_sorted_and_their_buffer_checked(world: World) -> None:
    world.task.memory.write(world.data, struct.pack("<4I", 9, 3, 7, 3))
    assert call(world, "setgroups", 4, world.data) == 0
    assert call(world, "getgroups", 0, 4096) == 4
    assert call(world, "getgroups", 3, world.data) == -errno.EINVAL
    assert call(world, "getgroups", -1, world.data) == -errno.EINVAL
    assert call(world, "getgroups", 4, 4096) == -errno.EFAULT
    assert call(world, "getgroups", 100, world.data + 100) == 4
    assert struct.unpack("<4I", world.task.memory.read(world.data + 100, 16)) == (3, 3, 7, 9)
    assert call(world, "setgroups", 65537, world.data) == -errno.EINVAL
    assert call(world, "setgroups", -1, world.data) == -errno.EINVAL
    assert call(world, "setgroups", 1, 4096) == -errno.EFAULT
    world.task.memory.write(world.data, struct.pack("<I", 0xFFFF_FFFF))
    assert call(world, "setgroups", 1, world.data) == -errno.EINVAL
    world.task.credentials = Credentials(1000)
    assert call(world, "setgroups", 65537, 4096) == -errno.EPERM, "comes before all else"


def test_a_change_of_identity_makes_a_process_undumpable(world: World) -> None:
    task = world.task
    task.pdeath_signal = 9
    assert call(world, "setresuid", 0, 0, 0) == 0
    assert (task.process.dumpable, task.pdeath_signal) == (1, 9)
    assert call(world, "setresuid", 0, 1000, 0) == 0
    assert (task.process.dumpable, task.pdeath_signal) == (0, 0)


def test_credentials_are_replaced_and_not_changed(world: World) -> None:
    """Threads share them until one changes its own."""
    before = world.task.credentials
    assert call(world, "setuid", 7) == 0
    assert before.uid == 0
    assert world.task.credentials is not before


def test_capability_headers(world: World) -> None:
    header, data = world.data, world.data + 64
    memory = world.task.memory

    def ask(name: str, version: int, pid: int = 0, at: int = data) -> int:
        memory.write(header, struct.pack("<Ii", version, pid))
        return call(world, name, header, at)

    assert ask("capget", 0, at=0) == 0
    assert memory.read_u32(header) == 0x2008_0522
    assert ask("capget", 0) == -errno.EINVAL
    assert memory.read_u32(header) == 0x2008_0522
    assert ask("capset", 17) == -errno.EINVAL
    for version, size in ((0x1998_0330, 12), (0x2007_1026, 24), (0x2008_0522, 24)):
        memory.write(data, b"\xaa" * 32)
        assert ask("capget", version) == 0
        raw = memory.read(data, 32)
        assert raw[size:] == b"\xaa" * (32 - size)
        assert struct.unpack("<3I", raw[:12]) == (0xFFFF_FFFF, 0xFFFF_FFFF, 0)
        assert size == 12 or struct.unpack("<3I", raw[12:24]) == (0x1FF, 0x1FF, 0)
    version = 0x2008_0522
    assert ask("capget", version, -1) == -errno.EINVAL
    assert ask("capget", version, 4_000_000) == -errno.ESRCH
    assert ask("capget", version, world.new_process().tid) == 0
    assert ask("capget", version, world.task.tid) == 0
    assert ask("capget", version, at=4096) == -errno.EFAULT
    assert call(world, "capget", 4096, 0) == -errno.EFAULT
    assert ask("capset", version, world.new_process().tid) == -errno.EPERM
    assert ask("capset", version, at=4096) == -errno.EFAULT
    memory.write(data, bytes(24))
    assert ask("capset", 0x1998_0330, world.task.tid) == 0
    assert world.task.credentials.permitted == 0


def test_process_groups(world: World) -> None:
    own, other = world.task.process, world.new_process().process
    for process in (own, other):
        process.sid = process.pgid = 1
    assert call(world, "getpgrp") == call(world, "getpgid", 0) == call(world, "getpgid", own.pid) == 1
    assert call(world, "getsid", 0) == call(world, "getsid", other.pid) == 1
    assert call(world, "getpgid", 4_000_000) == call(world, "getsid", -1) == -errno.ESRCH
    assert call(world, "setpgid", 0, -1) == -errno.EINVAL
    assert call(world, "setpgid", 4_000_000, 0) == -errno.ESRCH
    assert call(world, "setpgid", other.pid, 0) == -errno.ESRCH, "neither oneself nor a child"
    assert call(world, "setpgid", 0, other.pid) == -errno.EPERM, "no such group"
    other.pgid = other.pid
    assert call(world, "setpgid", 0, other.pid) == 0
    assert call(world, "getpgrp") == other.pid
    other.parent_pid = own.pid
    assert call(world, "setpgid", other.pid, other.pid) == 0
    other.sid = 5
    own.pgid = 1
    assert call(world, "setpgid", other.pid, other.pid) == -errno.EPERM, "a child in another session"
    assert call(world, "setpgid", 0, other.pid) == -errno.EPERM, "a group of another session"
    assert call(world, "setpgid", 0, 0) == 0
    assert call(world, "getpgrp") == own.pid


def test_sessions(world: World) -> None:
    own = world.task.process
    own.sid = own.pgid = 1
    assert call(world, "setsid") == own.pid
    assert (own.sid, own.pgid) == (own.pid, own.pid)
    assert call(world, "setsid") == -errno.EPERM
    assert call(world, "setpgid", 0, 0) == -errno.EPERM, "a session leader"
    own.sid = 1
    assert call(world, "setsid") == -errno.EPERM, "a group leader"
    own.pgid = 1
    world.new_process().process.pgid = own.pid
    assert call(world, "setsid") == -errno.EPERM, "another process is in the group that would be its own"


def test_umask(world: World) -> None:
    assert call(world, "umask", 0o77) == 0o022
    assert call(world, "umask", 0o107777) == 0o077
    assert call(world, "umask", 0) == 0o777
