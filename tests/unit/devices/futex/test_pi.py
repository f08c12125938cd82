"""Locks whose word names their owner: errors, order, circles, death of owners, requeueing."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.errors import ERESTARTNOINTR, Interrupted, SysError
from devices.futex import abi, words
from devices.futex.abi import FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS
from devices.futex.robust import exit_robust_list_locked
from devices.time.abi import TIMESPEC
from tests.unit.devices.running import Call, Machine, machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.task import Task

PRIVATE = abi.FUTEX_PRIVATE_FLAG


class Locks:
    """A machine whose memory holds locks, 64 bytes apart."""

    def __init__(self, made: Machine) -> None:
        self.machine = made
        self.memory = made.first.memory
        self.lock = made.data
        self.cond = made.data + 1024
        self.time = made.data + 4096

    def word(self, lock: int | None = None) -> int:
        return self.memory.read_u32(lock or self.lock)

    def set(self, value: int, lock: int | None = None) -> None:
        self.memory.write_u32(lock or self.lock, value)

    def call(
        self, task: Task, op: int, val: int = 0, timeout: int = 0, uaddr2: int = 0, val3: int = 0, at: int = 0
    ) -> int:
        """A call that does not wait; its result or -errno."""
        try:
            return self.machine.world.call(
                "futex", at or self.lock, op | PRIVATE, val, timeout, uaddr2, val3, task=task
            )
        except SysError as error:
            return -error.errno

    def start(
        self, task: Task, op: int = abi.FUTEX_LOCK_PI, val: int = 0, timeout: int = 0, uaddr2: int = 0, at: int = 0
    ) -> Call:
        return self.machine.start(task, "futex", at or self.lock, op | PRIVATE, val, timeout, uaddr2, 0)

    def deadline(self, ns: int, realtime: bool) -> int:
        clock = self.machine.kernel.clock
        now = clock.realtime_ns() if realtime else clock.monotonic_ns()
        self.memory.write(self.time, TIMESPEC.pack(*divmod(now + ns, 10**9)))
        return self.time

    def nothing_left(self) -> bool:
        futexes = self.machine.kernel.futexes
        return not (len(futexes) or futexes.owned or futexes.blocked)


@pytest.fixture
def locks() -> Iterator[Locks]:
    with machine() as made:
        yield Locks(made)


def test_a_free_lock_is_taken_and_given_back(locks: Locks) -> None:
    task = locks.machine.thread()
    for op in (abi.FUTEX_LOCK_PI, abi.FUTEX_LOCK_PI2, abi.FUTEX_TRYLOCK_PI):
        assert locks.call(task, op) == 0
        assert locks.word() == task.tid
        assert locks.call(task, abi.FUTEX_UNLOCK_PI) == 0
        assert locks.word() == 0
    assert locks.nothing_left()


def test_stale_bits_of_a_free_lock(locks: Locks) -> None:
    """WAITERS without waiters goes, OWNER_DIED stays until the program has seen it."""
    task = locks.machine.thread()
    locks.set(FUTEX_WAITERS | FUTEX_OWNER_DIED)
    assert locks.call(task, abi.FUTEX_LOCK_PI) == 0
    assert locks.word() == FUTEX_OWNER_DIED | task.tid


def test_one_lock_goes_round_in_order(locks: Locks) -> None:
    owner, *others = (locks.machine.thread() for _ in range(4))
    assert locks.call(owner, abi.FUTEX_LOCK_PI) == 0
    waiting = [locks.start(task) for task in others]
    assert all(call.asleep for call in waiting)
    assert locks.word() == owner.tid | FUTEX_WAITERS
    for task, call in zip(others, waiting, strict=True):
        assert locks.call(owner, abi.FUTEX_UNLOCK_PI) == 0
        assert call.result() == 0
        assert locks.word() == task.tid | FUTEX_WAITERS
        owner = task
    assert locks.call(owner, abi.FUTEX_UNLOCK_PI) == 0
    assert locks.word() == 0
    assert locks.nothing_left()


def test_errors_of_lock(locks: Locks) -> None:
    task, other = locks.machine.thread(), locks.machine.thread()
    locks.set(task.tid)
    for op in (abi.FUTEX_LOCK_PI, abi.FUTEX_TRYLOCK_PI):
        assert locks.call(task, op) == -errno.EDEADLK
    assert locks.word() == task.tid
    assert locks.call(other, abi.FUTEX_TRYLOCK_PI) == -errno.EAGAIN
    assert locks.word() == task.tid | FUTEX_WAITERS
    locks.set(12345)
    for op in (abi.FUTEX_LOCK_PI, abi.FUTEX_TRYLOCK_PI):
        assert locks.call(task, op) == -errno.ESRCH
    assert locks.word() == 12345 | FUTEX_WAITERS
    assert locks.call(task, abi.FUTEX_LOCK_PI, at=4096) == -errno.EFAULT
    assert locks.call(task, abi.FUTEX_LOCK_PI, at=locks.lock + 2) == -errno.EINVAL
    assert locks.nothing_left()


def test_errors_of_unlock(locks: Locks) -> None:
    task, other = locks.machine.thread(), locks.machine.thread()
    assert locks.call(task, abi.FUTEX_UNLOCK_PI) == -errno.EPERM
    locks.set(other.tid)
    assert locks.call(task, abi.FUTEX_UNLOCK_PI) == -errno.EPERM
    assert locks.call(task, abi.FUTEX_UNLOCK_PI, at=4096) == -errno.EFAULT
    locks.set(task.tid << 8, locks.lock)
    locks.set(task.tid >> 24, locks.lock + 4)
    assert locks.call(task, abi.FUTEX_UNLOCK_PI, at=locks.lock + 1) == -errno.EINVAL, "the owner is looked at first"
    assert locks.call(task, abi.FUTEX_UNLOCK_PI, at=locks.lock + 2) == -errno.EPERM


def test_mixing_with_plain_waiters_is_einval(locks: Locks) -> None:
    task, other = locks.machine.thread(), locks.machine.thread()
    plain = locks.start(other, abi.FUTEX_WAIT)
    assert plain.asleep
    assert locks.call(task, abi.FUTEX_LOCK_PI) == -errno.EINVAL
    locks.set(task.tid)
    assert locks.call(task, abi.FUTEX_UNLOCK_PI) == -errno.EINVAL
    assert locks.call(task, abi.FUTEX_WAKE, 1) == 1
    assert plain.result() == 0
    waiting = locks.start(other)
    assert waiting.asleep
    for op in (abi.FUTEX_WAKE, abi.FUTEX_REQUEUE, abi.FUTEX_CMP_REQUEUE, abi.FUTEX_WAKE_OP):
        assert locks.call(task, op, 1, 1, locks.cond, locks.word()) == -errno.EINVAL
    assert waiting.asleep
    assert locks.call(task, abi.FUTEX_UNLOCK_PI) == 0
    assert waiting.result() == 0


def test_a_word_that_disagrees_with_its_waiters_is_einval(locks: Locks) -> None:
    owner, waiter, third = (locks.machine.thread() for _ in range(3))
    locks.set(owner.tid)
    waiting = locks.start(waiter)
    for bad in (0, FUTEX_WAITERS, third.tid, third.tid | FUTEX_OWNER_DIED):
        locks.set(bad)
        task = owner if bad & FUTEX_TID_MASK else third
        assert locks.call(task, abi.FUTEX_TRYLOCK_PI) == -errno.EINVAL, hex(bad)
    locks.set(third.tid)
    assert locks.call(third, abi.FUTEX_UNLOCK_PI) == -errno.EINVAL
    locks.set(FUTEX_OWNER_DIED)
    assert locks.call(third, abi.FUTEX_TRYLOCK_PI) == -errno.EAGAIN
    assert waiting.asleep


def test_time_outs(locks: Locks) -> None:
    owner, task = locks.machine.thread(), locks.machine.thread()
    locks.set(owner.tid)
    for op, realtime in (
        (abi.FUTEX_LOCK_PI, True),
        (abi.FUTEX_LOCK_PI2, False),
        (abi.FUTEX_LOCK_PI2 | abi.FUTEX_CLOCK_REALTIME, True),
    ):
        assert locks.call(task, op, 0, locks.deadline(2_000_000, realtime)) == -errno.ETIMEDOUT
        assert locks.nothing_left()
    assert locks.word() == owner.tid | FUTEX_WAITERS
    assert locks.call(owner, abi.FUTEX_UNLOCK_PI) == 0
    assert locks.word() == 0


def test_a_signal_restarts_the_call(locks: Locks) -> None:
    owner, task = locks.machine.thread(), locks.machine.thread()
    locks.set(owner.tid)
    waiting = locks.start(task)
    locks.machine.signal(task)
    with pytest.raises(Interrupted) as caught:
        waiting.result()
    assert caught.value.restart == ERESTARTNOINTR
    assert locks.nothing_left()


def test_circles_of_owners_are_edeadlk(locks: Locks) -> None:
    tasks = [locks.machine.thread() for _ in range(4)]
    lock = [locks.lock + 64 * i for i in range(4)]
    for task, at in zip(tasks, lock, strict=True):
        assert locks.call(task, abi.FUTEX_LOCK_PI, at=at) == 0
    waiting = [locks.start(tasks[i], at=lock[i + 1]) for i in range(3)]
    assert all(call.asleep for call in waiting)
    assert locks.call(tasks[3], abi.FUTEX_LOCK_PI, at=lock[0]) == -errno.EDEADLK
    assert locks.call(tasks[3], abi.FUTEX_TRYLOCK_PI, at=lock[0]) == -errno.EAGAIN
    assert locks.call(tasks[3], abi.FUTEX_UNLOCK_PI, at=lock[3]) == 0
    assert waiting[2].result() == 0
    assert [call.asleep for call in waiting[:2]] == [True, True]


def test_a_dying_owner_leaves_its_locks_to_the_next(locks: Locks) -> None:
    owner, second, third = (locks.machine.thread() for _ in range(3))
    locks.set(owner.tid)
    waiting = [locks.start(second), locks.start(third)]
    exit_robust_list_locked(owner)
    assert waiting[0].result() == 0
    assert locks.word() == second.tid | FUTEX_WAITERS | FUTEX_OWNER_DIED
    assert waiting[1].asleep
    exit_robust_list_locked(second)
    assert waiting[1].result() == 0
    assert locks.word() == third.tid | FUTEX_WAITERS | FUTEX_OWNER_DIED
    assert locks.nothing_left()


def test_an_heir_that_cannot_write_the_word_gets_the_error(locks: Locks) -> None:
    owner, heir = locks.machine.thread(), locks.machine.thread()
    page = locks.machine.data + 8192
    locks.set(owner.tid, page)
    waiting = locks.start(heir, at=page)
    locks.machine.world.call("munmap", page, 4096)
    exit_robust_list_locked(owner)
    assert waiting.result() == -errno.EFAULT


def test_a_word_that_changes_all_the_time_does_not_hold_the_kernel(
    locks: Locks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread spoils every compare-and-exchange: the kernel lock is given up now and then, a signal ends it."""
    owner, task = locks.machine.thread(), locks.machine.thread()
    locks.set(owner.tid)
    monkeypatch.setattr(words, "compare_exchange", lambda *_: False)
    running = locks.machine
    started = Call(
        running, task, lambda: running.world.call("futex", locks.lock, abi.FUTEX_LOCK_PI | PRIVATE, task=task)
    )
    running.calls.append(started)
    started.start()
    with running.unlocked():
        started.join(0.05)
    assert started.is_alive()
    running.signal(task)
    with pytest.raises(Interrupted):
        started.result()


# Requeueing to a lock


def wait_requeue(locks: Locks, task: Task, timeout: int = 0, val: int = 0) -> Call:
    return locks.start(task, abi.FUTEX_WAIT_REQUEUE_PI, val, timeout, locks.lock, at=locks.cond)


def cmp_requeue(locks: Locks, task: Task, move: int, wake: int = 1, val: int = 0) -> int:
    return locks.call(task, abi.FUTEX_CMP_REQUEUE_PI, wake, move, locks.lock, val, at=locks.cond)


def test_a_signal_gives_a_free_lock_to_one(locks: Locks) -> None:
    signaller, *others = (locks.machine.thread() for _ in range(3))
    waiting = [wait_requeue(locks, task) for task in others]
    assert cmp_requeue(locks, signaller, 0) == 1
    assert waiting[0].result() == 0
    assert locks.word() == others[0].tid
    assert waiting[1].asleep


def test_a_broadcast_makes_the_rest_wait_for_the_lock(locks: Locks) -> None:
    signaller, *others = (locks.machine.thread() for _ in range(4))
    waiting = [wait_requeue(locks, task) for task in others]
    assert cmp_requeue(locks, signaller, 9) == 3
    for task, call in zip(others, waiting, strict=True):
        assert call.result() == 0
        assert locks.word() == task.tid | FUTEX_WAITERS
        assert locks.call(task, abi.FUTEX_UNLOCK_PI) == 0
    assert locks.word() == 0
    assert locks.nothing_left()


def test_with_the_lock_held_one_more_is_moved(locks: Locks) -> None:
    owner, *others = (locks.machine.thread() for _ in range(4))
    locks.set(owner.tid)
    waiting = [wait_requeue(locks, task) for task in others]
    assert cmp_requeue(locks, owner, 1) == 2
    assert locks.word() == owner.tid | FUTEX_WAITERS
    assert all(call.asleep for call in waiting)
    for task, call in zip([owner, others[0]], waiting, strict=False):
        assert locks.call(task, abi.FUTEX_UNLOCK_PI) == 0
        assert call.result() == 0
    assert locks.call(others[1], abi.FUTEX_UNLOCK_PI) == 0
    assert waiting[2].asleep


def test_errors_of_requeueing(locks: Locks) -> None:
    task, waiter = locks.machine.thread(), locks.machine.thread()
    op = abi.FUTEX_WAIT_REQUEUE_PI
    assert locks.call(task, op, 0, 0, locks.cond, at=locks.cond) == -errno.EINVAL
    assert locks.call(task, op, 1, 0, locks.lock, at=locks.cond) == -errno.EAGAIN
    assert locks.call(task, op, 0, 0, locks.lock + 1, at=locks.cond) == -errno.EINVAL
    assert locks.call(task, op, 0, locks.deadline(1_000_000, False), locks.lock, at=locks.cond) == -errno.ETIMEDOUT
    assert cmp_requeue(locks, task, 1, wake=0) == -errno.EINVAL
    assert cmp_requeue(locks, task, 1, wake=2) == -errno.EINVAL
    assert cmp_requeue(locks, task, -1) == -errno.EINVAL
    assert cmp_requeue(locks, task, 1, val=1) == -errno.EAGAIN
    assert locks.call(task, abi.FUTEX_CMP_REQUEUE_PI, 1, 1, locks.cond, 0, at=locks.cond) == -errno.EINVAL
    assert locks.call(task, abi.FUTEX_CMP_REQUEUE_PI, 1, 1, 4096, 0, at=locks.cond) == -errno.EFAULT
    assert cmp_requeue(locks, task, 1) == 0, "nobody waits"
    waiting = wait_requeue(locks, waiter)
    elsewhere = locks.lock + 64
    assert locks.call(task, abi.FUTEX_CMP_REQUEUE_PI, 1, 1, elsewhere, 0, at=locks.cond) == -errno.EINVAL
    assert locks.call(task, abi.FUTEX_WAKE, 1, at=locks.cond) == -errno.EINVAL
    assert locks.call(task, abi.FUTEX_REQUEUE, 1, 1, elsewhere, at=locks.cond) == -errno.EINVAL
    locks.set(waiter.tid)
    assert cmp_requeue(locks, task, 1) == -errno.EDEADLK
    locks.set(4_000_000)
    assert cmp_requeue(locks, task, 1) == -errno.ESRCH
    locks.set(0)
    assert waiting.asleep
    assert cmp_requeue(locks, task, 1) == 1
    assert waiting.result() == 0
    assert locks.nothing_left()


def test_plain_waiters_are_not_moved_to_a_lock(locks: Locks) -> None:
    task, waiter = locks.machine.thread(), locks.machine.thread()
    plain = locks.start(waiter, abi.FUTEX_WAIT, at=locks.cond)
    assert cmp_requeue(locks, task, 1) == -errno.EINVAL
    assert plain.asleep


@pytest.mark.parametrize("moved", [False, True])
def test_a_time_out_before_and_after_the_move(locks: Locks, moved: bool) -> None:
    owner, task = locks.machine.thread(), locks.machine.thread()
    locks.set(owner.tid)
    waiting = wait_requeue(locks, task, locks.deadline(30_000_000, False))
    if moved:
        assert cmp_requeue(locks, owner, 1) == 1
    assert waiting.result() == -errno.ETIMEDOUT
    assert locks.nothing_left()


@pytest.mark.parametrize("moved", [False, True])
def test_a_signal_before_and_after_the_move(locks: Locks, moved: bool) -> None:
    owner, task = locks.machine.thread(), locks.machine.thread()
    locks.set(owner.tid)
    waiting = wait_requeue(locks, task)
    if moved:
        assert cmp_requeue(locks, owner, 1) == 1
    locks.machine.signal(task)
    if moved:
        assert waiting.result() == -errno.EAGAIN
    else:
        with pytest.raises(Interrupted) as caught:
            waiting.result()
        assert caught.value.restart == ERESTARTNOINTR
    assert locks.nothing_left()


# All of it at random, against a reference

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["lock", "lock", "lock", "try", "unlock", "unlock", "signal", "die"]),
        st.integers(0, 4),
        st.integers(0, 2),
    ),
    max_size=30,
)


class Reference:
    """Owner, queue and word of each lock; who waits for which."""

    def __init__(self, tids: list[int]) -> None:
        self.tids = tids
        self.owner: list[int | None] = [None] * 3
        self.queue: list[list[int]] = [[], [], []]
        self.word = [0] * 3
        self.waits: dict[int, int] = {}

    def circle(self, who: int, lock: int) -> bool:
        at: int | None = lock
        while at is not None:
            owner = self.owner[at]
            if owner == who:
                return True
            at = None if owner is None else self.waits.get(owner)
        return False

    def lock(self, who: int, lock: int, trying: bool) -> int | None:
        """Result or -errno; None: waits."""
        owner = self.owner[lock]
        if owner == who:
            return -errno.EDEADLK
        if owner is None:
            self.owner[lock] = who
            self.word[lock] = self.word[lock] & FUTEX_OWNER_DIED | self.tids[who]
            return 0
        self.word[lock] |= FUTEX_WAITERS
        if trying:
            return -errno.EAGAIN
        if self.circle(who, lock):
            return -errno.EDEADLK
        self.queue[lock].append(who)
        self.waits[who] = lock
        return None

    def pass_on(self, lock: int, died: int) -> int | None:
        """The lock goes to the next; who that is."""
        if not self.queue[lock]:
            self.owner[lock] = None
            self.word[lock] = 0 if not died else self.word[lock]
            return None
        heir = self.queue[lock].pop(0)
        del self.waits[heir]
        self.owner[lock] = heir
        self.word[lock] = self.tids[heir] | FUTEX_WAITERS | died
        return heir


@settings(max_examples=60)
@given(STEPS)
def test_against_a_reference(steps: list[tuple[str, int, int]]) -> None:
    with machine() as made:
        locks = Locks(made)
        tasks = [made.thread() for _ in range(5)]
        model = Reference([task.tid for task in tasks])
        calls: dict[int, Call] = {}
        dead: set[int] = set()
        for action, who, lock in steps:
            at = locks.lock + 64 * lock
            if who in dead or (who in calls) != (action == "signal"):
                continue
            task = tasks[who]
            if action in ("lock", "try"):
                wanted = model.lock(who, lock, action == "try")
                if wanted is None:
                    calls[who] = locks.start(task, at=at)
                    assert calls[who].asleep
                else:
                    op = abi.FUTEX_TRYLOCK_PI if action == "try" else abi.FUTEX_LOCK_PI
                    assert locks.call(task, op, at=at) == wanted
            elif action == "unlock":
                if model.owner[lock] != who:
                    assert locks.call(task, abi.FUTEX_UNLOCK_PI, at=at) == -errno.EPERM
                    continue
                assert locks.call(task, abi.FUTEX_UNLOCK_PI, at=at) == 0
                heir = model.pass_on(lock, 0)
                if heir is not None:
                    assert calls.pop(heir).result() == 0
            elif action == "signal":
                made.signal(task)
                with pytest.raises(Interrupted):
                    calls.pop(who).result()
                made.forget_signals(task)
                model.queue[model.waits.pop(who)].remove(who)
            elif not any(model.owner[n] == who and not model.queue[n] for n in range(3)):
                dead.add(who)
                exit_robust_list_locked(task)
                made.kernel.discard_task_locked(task)
                for n in range(3):
                    if model.owner[n] == who:
                        heir = model.pass_on(n, FUTEX_OWNER_DIED)
                        assert heir is not None
                        assert calls.pop(heir).result() == 0
            assert [locks.word(locks.lock + 64 * n) for n in range(3)] == model.word
            assert all(call.asleep for call in calls.values())
            assert len(made.kernel.futexes.blocked) == len(calls)
