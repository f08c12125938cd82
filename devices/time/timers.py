"""What fires when nobody waits: timers of a machine, for timerfd, alarm, setitimer and timer_create.

One host thread serves all timers of a machine, from the first that is armed until the machine is closed; it sleeps
until the next one is due. Callbacks run with the kernel lock held. Rejected: a host timer each (timerfd, timer_create),
which would need a descriptor or a signal for every timer that a guest cares to make.
"""

from __future__ import annotations

import heapq
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.time.clock import Clock

LONGEST_WAIT = 10**6
"""Seconds."""


class Timer:
    """A timer that is armed; `cancel()` disarms it."""

    __slots__ = ("callback", "deadline")

    def __init__(self, deadline: int, callback: Callable[[], None]) -> None:
        self.deadline = deadline
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """It will not fire. Needs the kernel lock; may be called again."""
        self.callback = None

    def __lt__(self, other: Timer) -> bool:
        return self.deadline < other.deadline


class Timers:
    """A machine's timers. Deadlines are the host's CLOCK_MONOTONIC in ns; all methods need the kernel lock held."""

    def __init__(self, lock: threading.Lock, clock: Clock) -> None:
        self._lock = lock
        self._clock = clock
        self._heap: list[Timer] = []
        self._wake = threading.Lock()
        self._wake.acquire()
        self._awake = False
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, deadline: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` once, at `deadline` or a little later."""
        timer = Timer(deadline, callback)
        heapq.heappush(self._heap, timer)
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="timers", daemon=True)
            self._thread.start()
        elif self._heap[0] is timer:
            self._rouse()
        return timer

    def _rouse(self) -> None:
        if not self._awake:
            self._awake = True
            self._wake.release()

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                timeout = self._fire()
                self._awake = False
            self._wake.acquire(True, timeout)

    def _fire(self) -> float:
        """Call what is due; seconds until there is more."""
        heap = self._heap
        while heap:
            left = heap[0].deadline - self._clock.monotonic_ns()
            if heap[0].callback is not None and left > 0:
                return min(left / 1e9, LONGEST_WAIT)
            callback = heapq.heappop(heap).callback
            if callback is not None:
                callback()
        return LONGEST_WAIT

    def close(self) -> threading.Thread | None:
        """No timer fires any more; the thread that ends once the lock is free, to be joined."""
        self._closed = True
        self._heap.clear()
        self._rouse()
        return self._thread


class Interval:
    """A timer that may fire again and again, on one of the guest's clocks (struct hrtimer with hrtimer_forward())."""

    def __init__(self, timers: Timers, clock: Clock, fired: Callable[[], None]) -> None:
        self._timers = timers
        self._clock = clock
        self._fired = fired
        self._timer: Timer | None = None
        self._next = 0
        self.interval = 0
        """ns between expirations; 0: it fires once."""

    @property
    def left(self) -> int:
        """ns until it fires next; 0 while it is disarmed."""
        return max(self._next - self._clock.monotonic_ns(), 1) if self._timer is not None else 0

    def arm(self, left: int, interval: int) -> None:
        """Fire in `left` ns (0: now), then every `interval` ns."""
        self.disarm()
        self.interval = interval
        self._next = self._clock.monotonic_ns() + left
        self._timer = self._timers.add(self._next, self._expire)

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        if self.interval:
            self.again()
        self._fired()

    def again(self) -> int:
        """Arm it for its next period that is yet to come; how many periods have passed."""
        passed = max(0, self._clock.monotonic_ns() - self._next) // self.interval + 1
        self._next += passed * self.interval
        self._timer = self._timers.add(self._next, self._expire)
        return passed
