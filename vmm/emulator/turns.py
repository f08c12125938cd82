"""Whose turn it is: one engine, many CPUs, each on its own thread; a fair share of time for each.

The CPU that has used the engine least goes next. While others wait, the one whose turn it is may go on until it is
half a slice ahead of the least of them; then a waiting thread, which slept exactly that long, stops it. So two CPUs
that compute take turns of one slice, and one that comes back from a page fault or a system call need not wait for
the end of the other's slice. There is no thread for it, and with a single CPU nothing is ever stopped or timed.

Rejected: a plain queue. A CPU that faults often would pay a whole slice of another's for each of its faults.
"""

from __future__ import annotations

from threading import Lock, RLock
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_AGAIN = 0.001
"""Seconds until a stop is asked for once more, should the thread it was meant for not have run at all."""


class Contender:
    """What takes turns: a CPU. `kicked` may be set from any thread, followed by `Turns.wake`."""

    __slots__ = ("_planned", "_since", "_used", "_waiting", "_wake", "kicked")

    def __init__(self) -> None:
        self.kicked = False
        self._used = 0.0  # seconds of engine time, comparable with that of the others
        self._since = 0.0  # when the present turn began
        self._planned = 0.0  # when the waiting thread looks again
        self._waiting = False
        self._wake = Lock()
        self._wake.acquire()


class Turns:
    """A turn is held while a CPU runs. `stop` makes the one that holds it come back (any thread, must not block)."""

    __slots__ = ("_floor", "_lead", "_lock", "_owner", "_queue", "_stop", "give_way")

    def __init__(self, slice_seconds: float, stop: Callable[[], None]) -> None:
        self.give_way = False
        """The holder is to come back: set before `stop` is called, cleared when a turn begins."""
        self._lead = slice_seconds / 2
        self._stop = stop
        # Re-entrant: a signal handler of the same thread may kick.
        self._lock = RLock()
        self._owner: Contender | None = None
        self._queue: list[Contender] = []
        self._floor = 0.0
        """What all who take part have used at least; who comes is placed by it, and it never falls."""

    def take(self, cpu: Contender) -> bool:
        """Wait for the turn; False when `cpu` was kicked before it came."""
        with self._lock:
            owner = self._owner
            if owner is None:
                self._admit(cpu)
                self._grant(cpu)
                return True
            self._account(owner)
            self._floor = max(self._floor, min([owner._used, *(other._used for other in self._queue)]))
            self._admit(cpu)
            self._enqueue(cpu)
        try:
            return self._wait(cpu)
        except BaseException:
            self._abandon(cpu)
            raise

    def over(self, cpu: Contender) -> bool:
        """Give the turn up, and wait for the next one if others wait: as `take`."""
        with self._lock:
            self.give_way = False
            if not self._queue:
                return True
            self._account(cpu)
            self._enqueue(cpu)
            self._hand_over()
        try:
            return self._wait(cpu)
        except BaseException:
            self._abandon(cpu)
            raise

    def give_back(self, cpu: Contender) -> None:
        """End the turn of `cpu`, if it holds it still."""
        with self._lock:
            if self._owner is not cpu:
                return
            self._account(cpu)
            if self._queue:
                self._hand_over()
            else:
                self._owner = None

    def wake(self, cpu: Contender) -> None:
        """`cpu` was kicked: end its waiting, if it waits."""
        with self._lock:
            if cpu._waiting:
                self._rouse(cpu)

    # All below: with the lock held.

    def _account(self, holder: Contender) -> None:
        now = monotonic()
        holder._used += now - holder._since
        holder._since = now

    def _admit(self, cpu: Contender) -> None:
        """Who was away is neither owed the time that others had meanwhile nor kept waiting for what it had before."""
        cpu._used = min(max(cpu._used, self._floor - self._lead), self._floor + self._lead)

    def _grant(self, cpu: Contender) -> None:
        self._owner = cpu
        self.give_way = False
        cpu._since = monotonic()

    def _enqueue(self, cpu: Contender) -> None:
        cpu._wake.acquire(False)
        cpu._waiting = True
        self._queue.append(cpu)
        self._plan(cpu)

    def _hand_over(self) -> None:
        """To the one that has used least; of several, the one that waits longest."""
        following = min(self._queue, key=lambda cpu: cpu._used)
        self._queue.remove(following)
        following._waiting = False
        self._grant(following)
        self._rouse(following)
        if self._queue:
            first = min(self._queue, key=lambda cpu: cpu._used)
            if first._planned > self._due(first) + self._lead / 4:
                self._rouse(first)  # it thinks that others come before it; let it look again

    def _rouse(self, cpu: Contender) -> None:
        if cpu._wake.locked():
            cpu._wake.release()

    def _due(self, cpu: Contender) -> float:
        """When the present turn is over for the sake of `cpu`, as monotonic()."""
        owner = self._owner
        assert owner is not None
        return owner._since + max(0.0, cpu._used + self._lead - owner._used)

    def _plan(self, cpu: Contender) -> float:
        """Seconds until `cpu`'s thread must look again: its due time, later if others come before it."""
        before = sum(other._used < cpu._used for other in self._queue)
        cpu._planned = self._due(cpu) + before * self._lead
        return max(0.0, cpu._planned - monotonic())

    def _wait(self, cpu: Contender) -> bool:
        """Until the turn has come (True) or a kick (False). Called without the lock."""
        while True:
            with self._lock:
                if not cpu._waiting:
                    return True
                if cpu.kicked:
                    self._leave(cpu)
                    return False
                if monotonic() >= self._due(cpu):
                    self.give_way = True
                    self._stop()
                    timeout = _AGAIN
                else:
                    timeout = self._plan(cpu)
            cpu._wake.acquire(True, timeout)

    def _leave(self, cpu: Contender) -> None:
        self._queue.remove(cpu)
        cpu._waiting = False

    def _abandon(self, cpu: Contender) -> None:
        """An exception ended the waiting."""
        with self._lock:
            if cpu._waiting:
                self._leave(cpu)
            else:
                self.give_back(cpu)
