"""Waiting: wake-ups in order and to whom they were meant for, deadlines, interruption; on real threads."""

from __future__ import annotations

import os
import select
import threading
import time
from typing import TYPE_CHECKING

import pytest

from devices.errors import ERESTARTNOHAND, Interrupted, LeaveGuest
from devices.signals.send import send_locked
from devices.wait import Waiter, WaitQueue
from tests.unit.devices.support import World, world

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devices.task.task import Task

LONG = 30.0


@pytest.fixture
def machine() -> Iterator[World]:
    with world() as made:
        yield made


class Sleeper(threading.Thread):
    """A thread that does `what(task)` as a handler would, with the kernel lock held, and keeps how it ended."""

    def __init__(self, made: World, what: Callable[[Task], object]) -> None:
        super().__init__()
        self.task = made.new_process()
        self.kernel = made.kernel
        self.what = what
        self.outcome: object = None

    def run(self) -> None:
        with self.kernel.lock:
            self.task._ident = threading.get_ident()
            try:
                self.outcome = self.what(self.task)
            except (Interrupted, LeaveGuest) as error:
                self.outcome = error

    def finish(self) -> object:
        """Let it run to its end (the caller holds the kernel lock)."""
        self.kernel.lock.release()
        self.join(LONG)
        self.kernel.lock.acquire()
        assert not self.is_alive()
        return self.outcome


def until(made: World, condition: Callable[[], bool]) -> None:
    """Give the kernel lock away until `condition` holds."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        made.kernel.lock.release()
        time.sleep(0.001)  # let the others have it
        made.kernel.lock.acquire()


def start(made: World, queue: WaitQueue, what: Callable[[Task], object]) -> Sleeper:
    sleeper = Sleeper(made, what)
    before = len(queue)
    sleeper.start()
    until(made, lambda: len(queue) == before + 1)
    return sleeper


def test_woken_in_the_order_of_arrival(machine: World) -> None:
    queue = WaitQueue()
    sleepers = [start(machine, queue, lambda task: task.block(queue)) for _ in range(4)]
    assert queue.wake(1) == 1
    assert sleepers[0].finish() is True
    assert [s.is_alive() for s in sleepers] == [False, True, True, True]
    assert queue.wake_all() == 3
    assert [s.finish() for s in sleepers[1:]] == [True] * 3
    assert len(queue) == 0


def test_wake_may_choose_by_key(machine: World) -> None:
    queue = WaitQueue()

    def keyed(key: str) -> Callable[[Task], object]:
        return lambda task: task.block(queue, waiter=Waiter(task, key))

    sleepers = [start(machine, queue, keyed(key)) for key in "abab"]
    assert queue.wake(10, lambda waiter: waiter.key == "b") == 2
    assert sleepers[1].finish() is True
    assert sleepers[3].finish() is True
    assert len(queue) == 2
    queue.wake_all()
    assert [sleepers[i].finish() for i in (0, 2)] == [True, True]


def test_deadline(machine: World) -> None:
    queue = WaitQueue()
    now = machine.kernel.clock.monotonic_ns()
    assert machine.task.block(queue, now - 1) is False
    assert machine.task.block(queue, now + 20_000_000) is False
    assert machine.kernel.clock.monotonic_ns() >= now + 20_000_000
    assert len(queue) == 0


def test_requeued_waiter_leaves_the_queue_it_is_in(machine: World) -> None:
    first, second = WaitQueue(), WaitQueue()
    deadline = machine.kernel.clock.monotonic_ns() + 200_000_000
    sleeper = start(machine, first, lambda task: task.block(first, deadline))
    for waiter in first:
        first.requeue(waiter, second)
    assert (len(first), len(second)) == (0, 1)
    assert sleeper.finish() is False
    assert (len(first), len(second)) == (0, 0)


def test_a_signal_interrupts(machine: World) -> None:
    queue = WaitQueue()
    sleeper = start(machine, queue, lambda task: task.block(queue, restart=ERESTARTNOHAND))
    send_locked(sleeper.task, 15)
    outcome = sleeper.finish()
    assert isinstance(outcome, Interrupted)
    assert outcome.restart == ERESTARTNOHAND
    assert len(queue) == 0


def test_a_blocked_signal_does_not_interrupt(machine: World) -> None:
    queue = WaitQueue()
    sleeper = Sleeper(machine, lambda task: task.block(queue))
    sleeper.task.sigmask = 1 << 14
    sleeper.start()
    until(machine, lambda: len(queue) == 1)
    send_locked(sleeper.task, 15)
    queue.wake()
    assert sleeper.finish() is True


def test_the_end_of_the_process_interrupts_and_later_waits_do_not_begin(machine: World) -> None:
    queue = WaitQueue()
    sleeper = start(machine, queue, lambda task: task.block(queue))
    sleeper.task.process.exit_group_locked(9)
    assert isinstance(sleeper.finish(), Interrupted)
    with pytest.raises(Interrupted):
        sleeper.task.block(queue)


def test_waiting_is_refused_in_place(machine: World) -> None:
    machine.task.in_place = True
    queue = WaitQueue()
    with pytest.raises(LeaveGuest):
        machine.task.block(queue)
    with pytest.raises(LeaveGuest):
        machine.task.wait_host(0, select.POLLIN)
    with pytest.raises(LeaveGuest), machine.task.unlocked():
        pass
    assert len(queue) == 0


def test_host_descriptor_becomes_ready_or_a_signal_comes(machine: World) -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b"x")
        assert machine.task.wait_host(reader, select.POLLIN) == select.POLLIN
        os.read(reader, 1)
        assert machine.task.wait_host(reader, select.POLLIN, machine.kernel.clock.monotonic_ns() + 10**7) == 0
        sleeper = Sleeper(machine, lambda task: task.wait_host(reader, select.POLLIN))
        sleeper.start()
        until(machine, lambda: sleeper.task._host_wake >= 0)
        send_locked(sleeper.task, 15)
        assert isinstance(sleeper.finish(), Interrupted)
        sleeper.task.gone_locked()
    finally:
        machine.task.process.exit_group_locked(0)
        machine.task.gone_locked()
        os.close(reader)
        os.close(writer)


def test_no_wake_up_is_lost_or_kept(machine: World) -> None:
    """Two tasks wake each other in turn, each only through its queue; then a deadline with nobody waking."""
    ping, pong = WaitQueue(), WaitQueue()
    turns = [0, 0]

    def play(mine: WaitQueue, other: WaitQueue, index: int) -> Callable[[Task], object]:
        def run(task: Task) -> object:
            for _ in range(500):
                turns[index] += 1
                other.wake()
                if not task.block(mine, task.kernel.clock.monotonic_ns() + int(LONG * 1e9)):
                    return False
            other.wake()
            return task.block(mine, task.kernel.clock.monotonic_ns() + 1_000_000)

        return run

    first = start(machine, ping, play(ping, pong, 0))
    second = Sleeper(machine, play(pong, ping, 1))
    second.start()
    outcomes = {first.finish(), second.finish()}
    assert turns == [500, 500]
    assert False in outcomes
