"""flock, and range locks of processes and of open file descriptions, with those who wait for them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from devices.errors import ERESTARTSYS, Interrupted
from tests.unit.devices.vfs.support import FLOCK, Files, files

if TYPE_CHECKING:
    from collections.abc import Iterator

O_CREAT, O_RDWR, O_RDONLY = 0o100, 2, 0
F_GETLK, F_SETLK, F_SETLKW, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 5, 6, 7, 36, 37, 38
F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2
LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN = 1, 2, 4, 8


@pytest.fixture
def tree() -> Iterator[Files]:
    with files() as made:
        assert made.call("open", b"/f", O_CREAT | O_RDWR, 0o666) == 0
        yield made


def test_processes_exclude_each_other(tree: Files) -> None:
    other = tree.process()
    assert tree.call("open", b"/f", O_RDWR, task=other) == 0
    assert tree.lock(0, F_SETLK, F_WRLCK, 0, 10) == 0
    assert tree.lock(0, F_SETLK, F_RDLCK, 9, 1, other) == -errno.EAGAIN
    assert tree.lock(0, F_SETLK, F_WRLCK, 10, 0, other) == 0
    address = tree.flock(F_WRLCK, 5, 100)
    assert tree.call("fcntl", 0, F_GETLK, address) == 0
    assert FLOCK.unpack(tree.task.memory.read(address, 32)) == (F_WRLCK, 0, 10, 0, other.process.pid)


def test_any_closed_descriptor_drops_a_process_lock(tree: Files) -> None:
    other = tree.process()
    assert tree.call("open", b"/f", O_RDWR, task=other) == 0
    assert tree.lock(0, F_SETLK, F_WRLCK, 0, 0) == 0
    second = tree.call("open", b"/f", O_RDONLY)
    assert tree.call("close", second) == 0
    assert tree.lock(0, F_SETLK, F_WRLCK, 0, 0, other) == 0


def test_locks_of_open_file_descriptions_go_with_the_last_descriptor(tree: Files) -> None:
    second = tree.call("open", b"/f", O_RDWR)
    copy = tree.call("dup", 0)
    assert tree.lock(0, F_OFD_SETLK, F_WRLCK, 0, 1) == 0
    assert tree.lock(second, F_OFD_SETLK, F_WRLCK, 0, 1) == -errno.EAGAIN
    assert tree.lock(copy, F_OFD_SETLK, F_RDLCK, 0, 1) == 0
    assert tree.call("close", 0) == 0
    assert tree.lock(second, F_OFD_SETLK, F_WRLCK, 0, 1) == -errno.EAGAIN
    address = tree.flock(F_WRLCK, 0, 0)
    assert tree.call("fcntl", second, F_OFD_GETLK, address) == 0
    assert FLOCK.unpack(tree.task.memory.read(address, 32)) == (F_RDLCK, 0, 0, 1, -1)
    assert tree.call("close", copy) == 0
    assert tree.lock(second, F_OFD_SETLK, F_WRLCK, 0, 1) == 0


def test_a_lock_needs_a_descriptor_that_may(tree: Files) -> None:
    reader = tree.call("open", b"/f", O_RDONLY)
    assert tree.lock(reader, F_SETLK, F_WRLCK, 0, 0) == -errno.EBADF
    assert tree.lock(reader, F_SETLK, F_RDLCK, 0, 0) == 0
    assert tree.lock(reader, F_SETLK, 3, 0, 0) == -errno.EINVAL
    assert tree.lock(0, F_SETLK, F_RDLCK, 5, -6) == -errno.EINVAL
    assert tree.lock(0, F_SETLK, F_RDLCK, 1, (1 << 63) - 1) == 0
    assert tree.lock(0, F_SETLK, F_RDLCK, 2, (1 << 63) - 1) == -errno.EOVERFLOW


def test_a_waiter_gets_the_lock_when_it_is_free(tree: Files) -> None:
    thread = tree.machine.thread()
    second = tree.call("open", b"/f", O_RDWR)
    assert tree.lock(0, F_OFD_SETLK, F_WRLCK, 0, 10) == 0
    waiting = tree.start_lock(thread, second, F_OFD_SETLKW, F_WRLCK, 5, 1)
    assert waiting.asleep
    assert tree.lock(0, F_OFD_SETLK, F_UNLCK, 0, 5) == 0
    assert waiting.asleep
    assert tree.lock(0, F_OFD_SETLK, F_UNLCK, 5, 5) == 0
    assert waiting.result() == 0
    assert tree.lock(0, F_OFD_SETLK, F_RDLCK, 0, 10) == -errno.EAGAIN


def test_a_signal_ends_the_wait(tree: Files) -> None:
    thread = tree.machine.thread()
    second = tree.call("open", b"/f", O_RDWR)
    assert tree.lock(0, F_OFD_SETLK, F_WRLCK, 0, 10) == 0
    waiting = tree.start_lock(thread, second, F_OFD_SETLKW, F_WRLCK, 5, 1)
    tree.machine.signal(thread)
    with pytest.raises(Interrupted) as interrupted:
        waiting.result()
    assert interrupted.value.restart == ERESTARTSYS
    assert not tree.kernel.vfs.lock_waits
    assert tree.lock(0, F_OFD_SETLK, F_UNLCK, 0, 0) == 0


def test_a_deadlock_of_three_processes_is_refused(tree: Files) -> None:
    tasks = [tree.task, tree.process(), tree.process()]
    for number, task in enumerate(tasks):
        if number:
            assert tree.call("open", b"/f", O_RDWR, task=task) == 0
        assert tree.lock(0, F_SETLK, F_WRLCK, number, 1, task) == 0
    first = tree.start_lock(tasks[0], 0, F_SETLKW, F_WRLCK, 1, 1)
    second = tree.start_lock(tasks[1], 0, F_SETLKW, F_WRLCK, 2, 1)
    assert first.asleep
    assert second.asleep
    assert tree.lock(0, F_SETLKW, F_RDLCK, 0, 1, tasks[2]) == -errno.EDEADLK
    assert tree.lock(0, F_SETLK, F_UNLCK, 0, 0, tasks[2]) == 0
    assert second.result() == 0
    assert tree.lock(0, F_SETLK, F_UNLCK, 0, 0, tasks[1]) == 0
    assert first.result() == 0


def test_a_descriptor_closed_meanwhile(tree: Files) -> None:
    other = tree.process()
    thread = tree.machine.thread()
    assert tree.call("open", b"/f", O_RDWR, task=other) == 0
    assert tree.lock(0, F_SETLK, F_WRLCK, 0, 0, other) == 0
    waiting = tree.start_lock(thread, 0, F_SETLKW, F_WRLCK, 0, 0)
    assert tree.call("close", 0) == 0
    assert tree.lock(0, F_SETLK, F_UNLCK, 0, 0, other) == 0
    assert waiting.result() == -errno.EBADF
    assert tree.lock(0, F_SETLK, F_WRLCK, 0, 0, other) == 0


def test_flock_is_of_the_open_file_description(tree: Files) -> None:
    second = tree.call("open", b"/f", O_RDONLY)
    assert tree.call("flock", 0, LOCK_SH) == 0
    assert tree.call("flock", second, LOCK_SH) == 0
    assert tree.call("flock", 0, LOCK_EX | LOCK_NB) == -errno.EWOULDBLOCK
    assert tree.call("flock", second, LOCK_EX | LOCK_NB) == 0  # the failed conversion has lost the first lock
    assert tree.call("flock", tree.call("dup", second), LOCK_UN) == 0
    assert tree.call("flock", 0, LOCK_EX | LOCK_NB) == 0
    assert tree.call("flock", 0, 3) == -errno.EINVAL
    assert tree.call("flock", 99, LOCK_EX) == -errno.EBADF


def test_flock_waits_for_the_file_to_be_closed(tree: Files) -> None:
    thread = tree.machine.thread()
    second = tree.call("open", b"/f", O_RDWR)
    assert tree.call("flock", 0, LOCK_EX) == 0
    waiting = tree.machine.start(thread, "flock", second, LOCK_EX)
    assert waiting.asleep
    assert tree.call("close", 0) == 0
    assert waiting.result() == 0


def test_leases_are_refused_as_by_file_systems_without_them(tree: Files) -> None:
    f_setlease, f_getlease = 1024, 1025
    assert tree.call("fcntl", 0, f_setlease, F_RDLCK) == -errno.EINVAL
    assert tree.call("fcntl", 0, f_getlease, 0) == F_UNLCK
