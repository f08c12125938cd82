"""Robust lists of dying tasks: honest ones, hostile ones, and the calls that register them."""

from __future__ import annotations

import errno
import random
import struct
from typing import TYPE_CHECKING

import pytest

from devices.errors import SysError
from devices.futex import abi
from devices.futex.abi import FUTEX_OWNER_DIED, FUTEX_WAITERS, ROBUST_LIST_LIMIT
from devices.futex.robust import exit_robust_list_locked
from devices.task.process import Credentials
from tests.unit.devices.running import Machine, machine
from vmm.layout import TASK_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from devices.task.task import Task

U64 = (1 << 64) - 1
OFFSET = 32
"""Of a lock's word from its list entry."""


class Lists:
    """A machine with a robust list in its memory: the head first, then entries of 64 bytes."""

    def __init__(self, made: Machine) -> None:
        self.machine = made
        self.memory = made.first.memory
        self.head = made.data
        self.task = made.thread()

    def entry(self, index: int) -> int:
        return self.head + 64 * (index + 1)

    def word(self, index: int) -> int:
        return self.memory.read_u32(self.entry(index) + OFFSET)

    def set(self, index: int, value: int) -> None:
        self.memory.write_u32(self.entry(index) + OFFSET, value)

    def link(self, entries: Sequence[int], pending: int = 0, offset: int = OFFSET) -> None:
        """A list of these entries (addresses), and its registration."""
        following = [*entries, self.head]
        self.memory.write(self.head, struct.pack("<QqQ", following[0], offset, pending))
        for entry, after in zip(entries, following[1:], strict=True):
            self.memory.write_u64(entry & ~1, after)
        self.task.robust_list = self.head

    def die(self) -> None:
        exit_robust_list_locked(self.task)
        assert self.task.robust_list == 0


@pytest.fixture
def lists() -> Iterator[Lists]:
    with machine() as made:
        yield Lists(made)


def test_locks_of_the_dead_are_marked_and_a_waiter_woken(lists: Lists) -> None:
    tid = lists.task.tid
    lists.link([lists.entry(i) for i in range(4)])
    for index, value in enumerate((tid, tid | FUTEX_WAITERS, tid + 1, tid | FUTEX_OWNER_DIED)):
        lists.set(index, value)
    waiting = [
        lists.machine.start(lists.machine.thread(), "futex", lists.entry(1) + OFFSET, abi.FUTEX_WAIT, lists.word(1))
        for _ in range(2)
    ]
    lists.die()
    assert [lists.word(i) for i in range(4)] == [
        FUTEX_OWNER_DIED,
        FUTEX_OWNER_DIED | FUTEX_WAITERS,
        tid + 1,
        FUTEX_OWNER_DIED,
    ]
    assert waiting[0].result() == 0
    assert waiting[1].asleep


def test_no_list_is_no_work(lists: Lists) -> None:
    lists.die()
    lists.link([])
    lists.die()


@pytest.mark.parametrize("offset", [-8, 0, 32, -(1 << 62)])
def test_the_offset_is_signed(lists: Lists, offset: int) -> None:
    entry = lists.entry(3) + 8
    lists.link([entry], offset=offset)
    near = abs(offset) < 64
    if near:
        lists.memory.write_u32(entry + offset, lists.task.tid)
        if offset == 0:
            lists.memory.write_u64(entry, lists.task.tid)
    lists.die()
    if near:
        assert lists.memory.read_u32(entry + offset) == FUTEX_OWNER_DIED


def test_a_pi_lock_is_marked_but_its_waiters_are_not_woken_as_plain_ones(lists: Lists) -> None:
    lists.set(0, lists.task.tid | FUTEX_WAITERS)
    lists.link([lists.entry(0) | 1])
    waiting = lists.machine.start(
        lists.machine.thread(), "futex", lists.entry(0) + OFFSET, abi.FUTEX_WAIT, lists.word(0)
    )
    lists.die()
    assert lists.word(0) == FUTEX_OWNER_DIED | FUTEX_WAITERS
    assert waiting.asleep


def test_a_robust_pi_lock_with_waiters_goes_to_the_next(lists: Lists) -> None:
    lists.set(0, lists.task.tid)
    lists.link([lists.entry(0) | 1])
    heir = lists.machine.thread()
    waiting = lists.machine.start(heir, "futex", lists.entry(0) + OFFSET, abi.FUTEX_LOCK_PI)
    lists.die()
    assert waiting.result() == 0
    assert lists.word(0) == heir.tid | FUTEX_WAITERS | FUTEX_OWNER_DIED


@pytest.mark.parametrize("in_list", [False, True])
def test_the_pending_lock_is_dealt_with_once(lists: Lists, in_list: bool) -> None:
    lists.set(0, lists.task.tid)
    lists.link([lists.entry(0)] if in_list else [], pending=lists.entry(0))
    lists.die()
    assert lists.word(0) == FUTEX_OWNER_DIED


@pytest.mark.parametrize(
    ("value", "woken"),
    [(0, True), (FUTEX_OWNER_DIED, True), (4_000_000, True), (4_000_000 | FUTEX_WAITERS, False), (FUTEX_WAITERS, True)],
)
def test_a_wake_up_does_not_die_with_the_task(lists: Lists, value: int, woken: bool) -> None:
    """Between unlocking and waking, or between being woken and locking: the word is not the task's (any more)."""
    lists.set(0, value)
    lists.link([], pending=lists.entry(0))
    waiting = lists.machine.start(lists.machine.thread(), "futex", lists.entry(0) + OFFSET, abi.FUTEX_WAIT, value)
    lists.die()
    assert lists.word(0) == value
    assert waiting.asleep != woken


def test_such_a_lock_in_the_list_wakes_nobody(lists: Lists) -> None:
    lists.link([lists.entry(0)])
    waiting = lists.machine.start(lists.machine.thread(), "futex", lists.entry(0) + OFFSET, abi.FUTEX_WAIT, 0)
    lists.die()
    assert waiting.asleep


# Hostile lists


def test_a_circle_ends_at_the_limit(lists: Lists, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = lists.entry(0)
    lists.link([entry], pending=lists.entry(1))
    lists.memory.write_u64(entry, entry)
    lists.set(0, lists.task.tid)
    lists.set(1, lists.task.tid)
    reads = 0
    read = lists.memory.read_u64

    def counted(address: int) -> int:
        nonlocal reads
        reads += 1
        return read(address)

    monkeypatch.setattr(lists.memory, "read_u64", counted)
    lists.die()
    assert reads == ROBUST_LIST_LIMIT
    assert lists.word(0) == FUTEX_OWNER_DIED
    assert lists.word(1) == FUTEX_OWNER_DIED, "the pending one is dealt with still"


def test_a_bad_link_ends_the_walk_after_its_lock(lists: Lists) -> None:
    for bad in (4096, TASK_SIZE, U64 & ~7, 3):
        lists.set(0, lists.task.tid)
        lists.set(1, lists.task.tid)
        lists.link([lists.entry(0)], pending=lists.entry(1))
        lists.memory.write_u64(lists.entry(0), bad)
        lists.die()
        assert lists.word(0) == FUTEX_OWNER_DIED
        assert lists.word(1) == lists.task.tid, "nothing comes after a problem"


def test_a_bad_word_ends_the_walk(lists: Lists) -> None:
    lists.link([lists.entry(0), lists.entry(1)], offset=OFFSET + 1)
    lists.set(1, lists.task.tid)
    lists.die()
    assert lists.word(1) == lists.task.tid
    lists.link([lists.entry(0), lists.entry(1)], offset=1 << 46)
    lists.die()


@pytest.mark.parametrize("head", [1, 8, 4096, TASK_SIZE - 8, TASK_SIZE, U64, U64 - 23])
def test_a_bad_head_is_ignored(lists: Lists, head: int) -> None:
    lists.task.robust_list = head
    lists.die()


def test_a_read_only_word_stays(lists: Lists) -> None:
    page = lists.machine.data + 8192
    lists.memory.write_u32(page + OFFSET, lists.task.tid)
    lists.link([page])
    lists.machine.world.call("mprotect", page, 4096, 1)
    lists.die()
    assert lists.memory.read_u32(page + OFFSET) == lists.task.tid


def test_random_memory_as_a_list(lists: Lists) -> None:
    rng = random.Random(1)
    for _ in range(200):
        words = [
            rng.choice((rng.getrandbits(64), lists.head + rng.randrange(4096), rng.randrange(4096), lists.task.tid))
            for _ in range(512)
        ]
        lists.memory.write(lists.head, struct.pack("<512Q", *words))
        lists.task.robust_list = lists.head + rng.randrange(2048)
        lists.die()


# The calls


def call(lists: Lists, name: str, *arguments: int, task: Task | None = None) -> int:
    try:
        return lists.machine.world.call(name, *arguments, task=task)
    except SysError as error:
        return -error.errno


def test_registering_and_asking(lists: Lists) -> None:
    out = lists.machine.data + 4096
    other = lists.machine.thread()
    assert call(lists, "set_robust_list", 0x1234, 24, task=other) == 0
    for size in (0, 23, 25, 12):
        assert call(lists, "set_robust_list", 0x9999, size, task=other) == -errno.EINVAL
    assert call(lists, "get_robust_list", other.tid, out, out + 8) == 0
    assert struct.unpack("<QQ", lists.memory.read(out, 16)) == (0x1234, 24)
    assert call(lists, "get_robust_list", 0, out, out + 8) == 0
    assert struct.unpack("<QQ", lists.memory.read(out, 16)) == (0, 24)
    assert call(lists, "get_robust_list", 4_000_000, out, out + 8) == -errno.ESRCH
    assert call(lists, "get_robust_list", -1, out, out + 8) == -errno.ESRCH
    assert call(lists, "get_robust_list", 0, 4096, out + 8) == -errno.EFAULT
    assert call(lists, "get_robust_list", 0, out, 4096) == -errno.EFAULT


def test_only_those_who_may_trace_are_told(lists: Lists) -> None:
    out = lists.machine.data + 4096
    stranger = lists.machine.world.new_process()
    stranger.robust_list = 0x77
    assert call(lists, "get_robust_list", stranger.tid, out, out + 8) == 0
    user = Credentials(1000, 1000)
    lists.machine.first.credentials = user
    assert call(lists, "get_robust_list", stranger.tid, out, out + 8) == -errno.EPERM
    stranger.credentials = Credentials(1000, 1000)
    assert call(lists, "get_robust_list", stranger.tid, out, out + 8) == 0
    stranger.process.dumpable = 0
    assert call(lists, "get_robust_list", stranger.tid, out, out + 8) == -errno.EPERM
    assert call(lists, "get_robust_list", lists.task.tid, out, out + 8) == 0, "one's own process, whatever the ids"
