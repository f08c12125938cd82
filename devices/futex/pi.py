"""Locks whose word names their owner: the PI futexes (kernel/futex/pi.c and the PI half of requeue.c).

The word holds the owner's tid, FUTEX_WAITERS and FUTEX_OWNER_DIED. A program takes and releases a free lock without
a call; with FUTEX_WAITERS set both go through the kernel. Linux lends the owner the priority of its waiters. There
is nothing to lend here, because the host schedules the tasks and knows no guest priorities; all else is Linux's:
ownership, order, deadlock detection, errors, and what is left in the word.

Linux hands a lock over in two steps (the owner lets go, the woken waiter takes over later) and needs many rules for
the states in between. With one kernel lock the hand-over is one step: the waiter owns the lock when it is picked,
and the word says so. What a program can see is what it would see on Linux if the woken waiter ran at once.

A word that the program changes between our look and our compare-and-exchange is looked at again; `words.breathe`
keeps a program that changes it all the time from keeping the kernel lock.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import ERESTARTNOINTR, Interrupted, SysError
from devices.futex import words
from devices.futex.abi import FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS
from devices.futex.futex import FutexQueue, FutexWaiter
from devices.time.sleep import sleep_until

if TYPE_CHECKING:
    from collections.abc import Hashable

    from devices.futex.futex import Futexes
    from devices.task.task import Task
    from devices.time.sleep import Deadline

MAX_LOCK_DEPTH = 1024
"""How long a chain of owners that wait for other owners may be (kernel: max_lock_depth)."""
SETTLE_TRIES = 100
"""How often a dying owner's word is tried, where nothing may be waited for."""


class PiState:
    """A lock that somebody waits for: its futex, its owner, and how many wait."""

    __slots__ = ("futex", "owner", "waiting")

    def __init__(self, futex: Hashable, owner: Task) -> None:
        self.futex = futex
        self.owner = owner
        self.waiting = 0


# The registry: Futexes.owned and Futexes.blocked


def _new_state(futexes: Futexes, futex: Hashable, owner: Task) -> PiState:
    state = PiState(futex, owner)
    futexes.owned.setdefault(owner, []).append(state)
    return state


def _set_owner(futexes: Futexes, state: PiState, owner: Task | None) -> None:
    """Enter the lock under its new owner; None: nobody waits any more, forget it."""
    states = futexes.owned.get(state.owner)
    if states is not None and state in states:
        states.remove(state)
        if not states:
            del futexes.owned[state.owner]
    if owner is not None:
        state.owner = owner
        futexes.owned.setdefault(owner, []).append(state)


def _drop_if_unused(futexes: Futexes, state: PiState | None) -> None:
    if state is not None and not state.waiting:
        _set_owner(futexes, state, None)


def _attach(futexes: Futexes, waiter: FutexWaiter, state: PiState) -> None:
    """From now on the waiter waits for the lock."""
    waiter.pi = state
    state.waiting += 1
    futexes.blocked[waiter.task] = state


def _detach(futexes: Futexes, waiter: FutexWaiter) -> None:
    """The waiter has the lock, or does not want it any more. `waiter.pi` stays, to tell that it had been there."""
    state = waiter.pi
    if state is not None and futexes.blocked.pop(waiter.task, None) is not None:
        state.waiting -= 1


def _leave(futexes: Futexes, waiter: FutexWaiter) -> None:
    """A wait is over: if nobody picked the waiter, take it out."""
    if waiter.queue is not None:
        futexes.dequeue(waiter)
        _detach(futexes, waiter)
        _drop_if_unused(futexes, waiter.pi)


def _would_deadlock(futexes: Futexes, task: Task, state: PiState) -> bool:
    """Does the owner wait, directly or through other owners, for a lock of `task`?"""
    link: PiState | None = state
    for _ in range(MAX_LOCK_DEPTH):
        if link is None:
            return False
        if link.owner is task:
            return True
        link = futexes.blocked.get(link.owner)
    return True


# Taking


def _existing_state(top: FutexWaiter, value: int) -> PiState:
    """attach_to_pi_state(): the lock that others wait for already, if the word agrees with it."""
    state = top.pi
    if state is None:
        raise SysError(errno.EINVAL, "waiters that do not wait for a lock")
    tid = value & FUTEX_TID_MASK
    if tid != state.owner.tid and (tid or not value & FUTEX_OWNER_DIED):
        raise SysError(errno.EINVAL, "the word does not name the owner")
    return state


def _take(
    task: Task, address: int, futex: Hashable, taker: Task, *, set_waiters: bool, restart: int | None
) -> tuple[bool, PiState | None]:
    """futex_lock_pi_atomic(): take the lock for `taker`, or find what it has to wait for.

    (True, None): taken. (True, state): taken, and FUTEX_WAITERS set as asked. (False, state): owned by another task;
    FUTEX_WAITERS is set. The word is at `address` in the memory of `task`, the caller. With `restart` (the code for
    Interrupted) the caller is going to wait, and nothing is changed where it may not.

    EDEADLK when the taker owns it; ESRCH when the owner does not exist; EINVAL when word and waiters disagree; EFAULT.
    """
    kernel = task.kernel
    futexes = kernel.futexes
    tries = 0
    while True:
        value = words.read(task, address)
        tid = value & FUTEX_TID_MASK
        if tid == taker.tid:
            raise SysError(errno.EDEADLK, "the taker is the owner")
        queue = futexes.find(futex)
        if queue is not None:
            return False, _existing_state(queue.top, value)
        if not tid:
            new = value & FUTEX_OWNER_DIED | taker.tid | (FUTEX_WAITERS if set_waiters else 0)
            if words.compare_exchange(task, address, value, new):
                return True, _new_state(futexes, futex, taker) if set_waiters else None
        else:
            if restart is not None:
                task.check_may_wait_locked(restart)
            if words.compare_exchange(task, address, value, value | FUTEX_WAITERS):
                owner = kernel.tasks.get(tid)
                if owner is not None:
                    return False, _new_state(futexes, futex, owner)
                if words.read(task, address) == value | FUTEX_WAITERS:
                    raise SysError(errno.ESRCH, "the owner does not exist")
        words.breathe(task, tries, ERESTARTNOINTR)
        tries += 1


def lock(task: Task, address: int, shared: bool, deadline: Deadline | None) -> int:
    """FUTEX_LOCK_PI and FUTEX_LOCK_PI2. Errors as `_take`, and ETIMEDOUT; EDEADLK also for a circle of owners."""
    futexes = task.kernel.futexes
    futex = words.key_of(task, address, shared, write=True)
    taken, state = _take(task, address, futex, task, set_waiters=False, restart=ERESTARTNOINTR)
    if taken or state is None:
        return 0
    if _would_deadlock(futexes, task, state):
        _drop_if_unused(futexes, state)
        raise SysError(errno.EDEADLK, "a circle of owners")
    waiter = FutexWaiter(task, futex, address)
    _attach(futexes, waiter, state)
    futexes.enqueue(waiter)
    try:
        if not sleep_until(task, deadline, ERESTARTNOINTR):
            raise SysError(errno.ETIMEDOUT)
    finally:
        _leave(futexes, waiter)
    return _outcome(waiter)


def try_lock(task: Task, address: int, shared: bool) -> int:
    """FUTEX_TRYLOCK_PI: EAGAIN when another task owns it. Sets FUTEX_WAITERS even then, as Linux does."""
    futex = words.key_of(task, address, shared, write=True)
    taken, state = _take(task, address, futex, task, set_waiters=False, restart=None)
    if taken:
        return 0
    _drop_if_unused(task.kernel.futexes, state)
    raise SysError(errno.EAGAIN, "owned by another task")


def _outcome(waiter: FutexWaiter) -> int:
    """What the hand-over has left in the waiter: an error number or 0."""
    if waiter.result:
        raise SysError(waiter.result)
    return 0


# Giving


def unlock(task: Task, address: int, shared: bool) -> int:
    """FUTEX_UNLOCK_PI: hand the lock to the waiter that has waited longest, or free it.

    EPERM when the caller does not own it; EINVAL when word and waiters disagree; EAGAIN when the word changed; EFAULT.
    """
    futexes = task.kernel.futexes
    tries = 0
    while True:
        value = words.read(task, address)
        if value & FUTEX_TID_MASK != task.tid:
            raise SysError(errno.EPERM, "not the owner")
        queue = futexes.find(words.key_of(task, address, shared, write=True))
        if queue is None:
            if words.compare_exchange(task, address, value, 0):
                return 0
            raise SysError(errno.EAGAIN, "the word changed")
        top = queue.top
        state = top.pi
        if state is None or state.owner is not task:
            raise SysError(errno.EINVAL, "not the owner of what others wait for")
        if words.compare_exchange(task, address, value, FUTEX_WAITERS | top.task.tid):
            _hand_over(futexes, state, top, 0)
            return 0
        if words.read(task, address) & FUTEX_TID_MASK != value:
            raise SysError(errno.EINVAL, "the word changed")
        words.breathe(task, tries, ERESTARTNOINTR)
        tries += 1


def _hand_over(futexes: Futexes, state: PiState, waiter: FutexWaiter, result: int) -> None:
    """The waiter owns the lock; `result` is what it finds when it wakes. The word says so already, if it could."""
    _detach(futexes, waiter)
    _set_owner(futexes, state, waiter.task if state.waiting else None)
    futexes.pick(waiter, result)


def exit_pi_states_locked(task: Task) -> None:
    """exit_pi_state_list(): a dying task's locks go to their next waiters, with FUTEX_OWNER_DIED set."""
    futexes = task.kernel.futexes
    for state in futexes.owned.pop(task, []):
        queue = futexes.find(state.futex)
        if queue is not None and state.waiting:
            top = queue.top
            _hand_over(futexes, state, top, _claim(top))


def _claim(waiter: FutexWaiter) -> int:
    """Write a dead owner's heir into the word, through the heir's own memory; 0 or the error that the heir gets."""
    task = waiter.task
    try:
        for _ in range(SETTLE_TRIES):
            value = words.read(task, waiter.address)
            if words.compare_exchange(task, waiter.address, value, FUTEX_OWNER_DIED | FUTEX_WAITERS | task.tid):
                return 0
    except SysError as error:
        return error.errno
    return errno.EAGAIN


# A condition variable's waiters become a lock's waiters


def wait_requeue(
    task: Task, address: int, shared: bool, value: int, deadline: Deadline | None, lock_address: int
) -> int:
    """FUTEX_WAIT_REQUEUE_PI: sleep on one futex, be moved to a lock by `cmp_requeue`, and return owning the lock.

    EAGAIN when the word has another value, or when a signal came after the move; ETIMEDOUT; EINVAL when both are the
    same futex.
    """
    if address == lock_address:
        raise SysError(errno.EINVAL, "one futex for both")
    futexes = task.kernel.futexes
    lock_futex = words.key_of(task, lock_address, shared, write=True)
    futex = words.key_of(task, address, shared)
    if words.read(task, address) != value:
        raise SysError(errno.EAGAIN, "the word has another value")
    if futex == lock_futex:
        raise SysError(errno.EINVAL, "one futex for both")
    waiter = FutexWaiter(task, futex, lock_address)
    waiter.requeue_key = lock_futex
    futexes.enqueue(waiter)
    try:
        if not sleep_until(task, deadline, ERESTARTNOINTR):
            raise SysError(errno.ETIMEDOUT)
    except Interrupted:
        if waiter.pi is not None:
            raise SysError(errno.EAGAIN, "interrupted when it already waited for the lock") from None
        raise
    finally:
        _leave(futexes, waiter)
    return _outcome(waiter)


def cmp_requeue(task: Task, address: int, shared: bool, lock_address: int, wake: int, move: int, value: int) -> int:
    """FUTEX_CMP_REQUEUE_PI: give the lock to the longest waiter of `address`, if it is free, and make up to `move`
    others wait for it. How many of both.

    EINVAL for another `wake` than 1, one futex for both or waiters that wait for something else; EAGAIN when the word
    at `address` is not `value`; EDEADLK when one of them owns the lock already; else as `_take`.
    """
    if wake < 0 or move < 0 or address == lock_address or wake != 1:
        raise SysError(errno.EINVAL)
    futexes = task.kernel.futexes
    futex = words.key_of(task, address, shared)
    lock_futex = words.key_of(task, lock_address, shared, write=True)
    if futex == lock_futex:
        raise SysError(errno.EINVAL, "one futex for both")
    if words.read(task, address) != value:
        raise SysError(errno.EAGAIN, "the word has another value")
    words.read(task, lock_address)
    queue = futexes.find(futex)
    if queue is None:
        return 0
    top = queue.top
    if top.pi is not None or top.requeue_key != lock_futex:
        raise SysError(errno.EINVAL, "waiters of another kind")
    taken, state = _take(task, lock_address, lock_futex, top.task, set_waiters=move > 0, restart=None)
    if taken:
        futexes.pick(top, 0)
    try:
        return _move_waiters(futexes, queue, lock_futex, state, int(taken), wake + move)
    finally:
        _drop_if_unused(futexes, state)


def _move_waiters(
    futexes: Futexes, queue: FutexQueue, lock_futex: Hashable, state: PiState | None, done: int, limit: int
) -> int:
    """Make waiters wait for the lock until `done` is `limit`."""
    for waiter in queue:
        if done >= limit or state is None:
            break
        if waiter.pi is not None or waiter.requeue_key != lock_futex:
            raise SysError(errno.EINVAL, "waiters of another kind")
        if _would_deadlock(futexes, waiter.task, state):
            raise SysError(errno.EDEADLK, "a waiter owns the lock")
        _attach(futexes, waiter, state)
        futexes.move(waiter, lock_futex)
        done += 1
    return done
