"""The queues against a reference that is one list: random waits, wake-ups, moves and time-outs."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from devices.errors import SysError
from devices.futex.futex import Futexes, FutexWaiter

if TYPE_CHECKING:
    from devices.futex.pi import PiState
    from devices.task.task import Task
    from devices.wait import Waiter

KEYS = st.sampled_from("abc")
BITSETS = st.integers(1, 15)


class Sleeper:
    """What a queue needs of a task."""

    def __init__(self) -> None:
        self.woken = 0

    def wake_sleeper(self, waiter: Waiter) -> None:
        self.woken += 1


class FutexQueues(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.futexes = Futexes()
        self.model: list[list[object]] = []
        """[key, bitset, plain, waiter, task] of each sleeper, by the time at which it came to its futex."""
        self.slept: list[tuple[Sleeper, bool]] = []

    @rule(key=KEYS, bitset=BITSETS, kind=st.sampled_from(["plain", "plain", "plain", "pi", "requeue"]))
    def wait(self, key: str, bitset: int, kind: str) -> None:
        task = Sleeper()
        waiter = FutexWaiter(cast("Task", task), key, 0, bitset)
        if kind == "pi":
            waiter.pi = cast("PiState", object())
        elif kind == "requeue":
            waiter.requeue_key = "z"
        self.futexes.enqueue(waiter)
        self.model.append([key, bitset, kind == "plain", waiter, task])

    @rule(key=KEYS, count=st.integers(-2, 4), bitset=BITSETS)
    def wake(self, key: str, count: int, bitset: int) -> None:
        chosen: list[list[object]] = []
        mixed = False
        for entry in self.model:
            if entry[0] != key:
                continue
            if not entry[2]:
                mixed = True
                break
            if cast("int", entry[1]) & bitset:
                chosen.append(entry)
                if len(chosen) >= count:
                    break
        if mixed:
            with pytest.raises(SysError) as caught:
                self.futexes.wake(key, count, bitset)
            assert caught.value.errno == errno.EINVAL
        else:
            assert self.futexes.wake(key, count, bitset) == len(chosen)
        self.end(chosen, 1)

    @rule(source=KEYS, goal=KEYS, wake=st.integers(0, 3), move=st.integers(0, 3))
    def requeue(self, source: str, goal: str, wake: int, move: int) -> None:
        woken: list[list[object]] = []
        moved: list[list[object]] = []
        mixed = False
        for entry in [e for e in self.model if e[0] == source]:
            if len(woken) + len(moved) >= wake + move:
                break
            if not entry[2]:
                mixed = True
                break
            (woken if len(woken) < wake else moved).append(entry)
        if mixed:
            with pytest.raises(SysError):
                self.futexes.requeue(source, goal, wake, move)
        else:
            assert self.futexes.requeue(source, goal, wake, move) == len(woken) + len(moved)
        self.end(woken, 1)
        if source != goal:
            for entry in moved:
                self.model.remove(entry)
                entry[0] = goal
                self.model.append(entry)

    @rule(data=st.data())
    def time_out(self, data: st.DataObject) -> None:
        if self.model:
            entry = data.draw(st.sampled_from(self.model))
            self.futexes.dequeue(cast("FutexWaiter", entry[3]))
            self.futexes.dequeue(cast("FutexWaiter", entry[3]))
            self.end([entry], 0)

    def end(self, entries: list[list[object]], woken: int) -> None:
        for entry in entries:
            self.model.remove(entry)
            assert cast("Sleeper", entry[4]).woken == woken
            assert cast("FutexWaiter", entry[3]).queue is None

    @invariant()
    def queues_are_the_models(self) -> None:
        keys = {entry[0] for entry in self.model}
        assert len(self.futexes) == len(keys), "a futex without waiters takes no memory"
        for key in "abc":
            queue = self.futexes.find(key)
            assert [*(queue or [])] == [entry[3] for entry in self.model if entry[0] == key]
        assert all(cast("Sleeper", entry[4]).woken == 0 for entry in self.model)


TestFutexQueues = FutexQueues.TestCase
