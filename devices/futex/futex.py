"""The queues of waiters, by futex, and the plain operations on them (kernel/futex/waitwake.c, requeue.c).

The kernel sorts waiters by real-time priority and then by age. All tasks have the same priority here (the host
schedules them), so a queue is a FIFO.

A waiter of a lock that names its owner (`pi.py`) stands in the same queues and is told apart by `pi`, or, while it
waits to be moved to such a lock, by `requeue_key`. Mixing the two kinds on one futex is EINVAL, as on Linux.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

from devices.errors import ERESTART_RESTARTBLOCK, ERESTARTSYS, Interrupted, SysError
from devices.futex import words
from devices.futex.abi import FUTEX_BITSET_MATCH_ANY
from devices.time.sleep import sleep_until
from devices.wait import Waiter, WaitQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from devices.futex.pi import PiState
    from devices.task.task import Task
    from devices.time.sleep import Deadline
    from vmm.memory.atomics import Atomics


class FutexWaiter(Waiter):
    """A task that waits on a futex: `key` is the bitset, `futex` the futex's key, `address` the word in the task's
    memory."""

    __slots__ = ("address", "futex", "pi", "requeue_key")
    key: int

    def __init__(self, task: Task, futex: Hashable, address: int, bitset: int = FUTEX_BITSET_MATCH_ANY) -> None:
        super().__init__(task, bitset)
        self.futex = futex
        self.address = address
        self.pi: PiState | None = None
        """The lock that it waits for."""
        self.requeue_key: Hashable | None = None
        """FUTEX_WAIT_REQUEUE_PI: the futex of the lock that it may be moved to."""

    @property
    def plain(self) -> bool:
        return self.pi is None and self.requeue_key is None


class FutexQueue(WaitQueue):
    """The waiters of one futex."""

    __slots__ = ()

    def __iter__(self) -> Iterator[FutexWaiter]:
        return cast("Iterator[FutexWaiter]", super().__iter__())

    @property
    def top(self) -> FutexWaiter:
        """The one that has waited longest; the queue is not empty."""
        return next(iter(self))


class Futexes:
    """A machine's futexes. Only those that somebody waits on take memory."""

    __slots__ = ("_queues", "atomics", "blocked", "owned")

    def __init__(self) -> None:
        self._queues: dict[Hashable, FutexQueue] = {}
        self.atomics: Atomics | None = None
        """Operations on guest words; made when first needed (words.py)."""
        self.owned: dict[Task, list[PiState]] = {}
        """Locks with waiters, by their owner."""
        self.blocked: dict[Task, PiState] = {}
        """The lock that a task waits for."""

    def __len__(self) -> int:
        """How many futexes somebody waits on."""
        return len(self._queues)

    # Queues

    def find(self, futex: Hashable) -> FutexQueue | None:
        """The waiters of a futex; None when there are none."""
        return self._queues.get(futex)

    def enqueue(self, waiter: FutexWaiter) -> None:
        """Put a waiter at the end of its futex's queue."""
        queue = self._queues.get(waiter.futex)
        if queue is None:
            queue = self._queues[waiter.futex] = FutexQueue()
        queue.add(waiter)

    def dequeue(self, waiter: FutexWaiter) -> None:
        """Take a waiter out, if nobody has yet."""
        queue = waiter.queue
        if queue is not None:
            queue.remove(waiter)
            if not queue:
                del self._queues[waiter.futex]

    def move(self, waiter: FutexWaiter, futex: Hashable) -> None:
        """Make a waiter wait on another futex, at the end of its queue."""
        if waiter.futex != futex:
            self.dequeue(waiter)
            waiter.futex = futex
            self.enqueue(waiter)

    def pick(self, waiter: FutexWaiter, result: object = True) -> None:
        """Take a waiter out and wake its task."""
        self.dequeue(waiter)
        waiter.wake(result)

    # Operations

    def wake(self, futex: Hashable, count: int, bitset: int = FUTEX_BITSET_MATCH_ANY) -> int:
        """Wake waiters whose bitset has a bit of `bitset`, oldest first, and return how many.

        At least one, even if `count` is 0 or negative: so does Linux. EINVAL at a waiter that is not plain (those
        before it have been woken).
        """
        queue = self._queues.get(futex)
        woken = 0
        if queue is not None:
            for waiter in queue:
                if not waiter.plain:
                    raise SysError(errno.EINVAL, "the futex is a PI futex")
                if waiter.key & bitset:
                    self.pick(waiter)
                    woken += 1
                    if woken >= count:
                        break
        return woken

    def requeue(self, source: Hashable, target: Hashable, wake: int, move: int) -> int:
        """Wake up to `wake` waiters of `source` and move up to `move` further ones; how many of both.

        EINVAL at a waiter that is not plain (those before it have been dealt with).
        """
        queue = self._queues.get(source)
        done = 0
        if queue is not None:
            for waiter in queue:
                if done - wake >= move:
                    break
                if not waiter.plain:
                    raise SysError(errno.EINVAL, "the futex is a PI futex")
                done += 1
                if done <= wake:
                    self.pick(waiter)
                else:
                    self.move(waiter, target)
        return done

    def wake_address_locked(self, task: Task, address: int, count: int) -> int:
        """Wake waiters on an address in the task's memory, as for clear_child_tid and robust lists: they are woken as a
        shared futex. A bad address wakes nobody."""
        try:
            return self.wake(words.key_of(task, address, True), count)
        except SysError:
            return 0


def wait(
    task: Task,
    address: int,
    shared: bool,
    value: int,
    bitset: int,
    deadline: Deadline | None,
    restart_block: bool = True,
) -> int:
    """Sleep until woken, if the word at `address` is `value`. Returns 0.

    EAGAIN when it is not; ETIMEDOUT; EINVAL for an empty bitset. When a signal cuts the wait short, a wait with a
    deadline goes on through restart_syscall(2) unless a handler ran, one without is restarted like any call.
    """
    if not bitset:
        raise SysError(errno.EINVAL, "empty bitset")
    futexes = task.kernel.futexes
    waiter = FutexWaiter(task, words.key_of(task, address, shared), address, bitset)
    if words.read(task, address) != value:
        raise SysError(errno.EAGAIN, "the word has another value")
    restart = ERESTARTSYS if deadline is None or not restart_block else ERESTART_RESTARTBLOCK
    futexes.enqueue(waiter)
    try:
        woken = sleep_until(task, deadline, restart)
    except Interrupted:
        if restart == ERESTART_RESTARTBLOCK:
            task.restart_block = _restart(address, shared, value, bitset, deadline)
        raise
    finally:
        futexes.dequeue(waiter)
    if not woken:
        raise SysError(errno.ETIMEDOUT)
    return 0


def _restart(address: int, shared: bool, value: int, bitset: int, deadline: Deadline | None) -> Callable[[Task], int]:
    """futex_wait_restart(): the same wait, with the deadline that it had."""
    return lambda task: wait(task, address, shared, value, bitset, deadline)


def wait_multiple(task: Task, wanted: Sequence[tuple[int, bool, int]], deadline: Deadline | None) -> int:
    """Sleep until one of several futexes (address, shared, value) is woken; the index of one that was.

    EAGAIN when a word has another value; ETIMEDOUT.
    """
    futexes = task.kernel.futexes
    waiters = [FutexWaiter(task, words.key_of(task, address, shared), address) for address, shared, _ in wanted]
    for address, _, value in wanted:
        if words.read(task, address) != value:
            raise SysError(errno.EAGAIN, "a word has another value")
    for waiter in waiters:
        futexes.enqueue(waiter)
    try:
        if not sleep_until(task, deadline, ERESTARTSYS):
            raise SysError(errno.ETIMEDOUT)
        return max(index for index, waiter in enumerate(waiters) if waiter.queue is None)
    finally:
        for waiter in waiters:
            futexes.dequeue(waiter)
