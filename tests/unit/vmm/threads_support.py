"""What the tests of vmm.threads share: gates that block jobs, runtimes that close in any case, thread counts."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vmm.threads import Runtime

LONG = 30.0  # seconds; a wait that takes this long has failed


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that will become true by itself, without a wake-up that could be waited for."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, f"not within {LONG} s: {what}"
        time.sleep(0.001)


def thread_ids() -> set[int]:
    """The kernel's ids of all threads of this process."""
    return {int(entry) for entry in os.listdir("/proc/self/task")}


def os_name(native_id: int) -> str:
    """The kernel's name of a thread of this process."""
    with open(f"/proc/self/task/{native_id}/comm", encoding="utf-8", errors="replace") as comm:
        return comm.read().removesuffix("\n")


class Gate:
    """A job waits in `enter`; the test waits until it is there and opens."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._open = threading.Event()
        self.native_id = 0

    def enter(self) -> int:
        native_id = self.native_id = threading.get_native_id()
        self._reached.set()
        assert self._open.wait(LONG), "a gate that nobody opened"
        return native_id

    def reached(self) -> bool:
        return self._reached.is_set()

    def wait(self) -> None:
        assert self._reached.wait(LONG), "no job came to this gate"

    def open(self) -> None:
        self._open.set()


class Pool:
    """Makes runtimes and gates; at the end opens all gates and closes all runtimes, also when the test has failed."""

    def __init__(self) -> None:
        self._gates: list[Gate] = []
        self._runtimes: list[Runtime] = []

    def gate(self) -> Gate:
        gate = Gate()
        self._gates.append(gate)
        return gate

    def runtime(self, limit: int, name: str = "pool", idle_seconds: float = 60.0) -> Runtime:
        runtime = Runtime(limit, name, idle_seconds=idle_seconds)
        self._runtimes.append(runtime)
        return runtime

    def finish(self) -> None:
        for gate in self._gates:
            gate.open()
        for runtime in self._runtimes:
            runtime.close(LONG)


@contextmanager
def checked_pool() -> Iterator[Pool]:
    """A `Pool` after whose end the process has no thread that it had not before."""
    before = thread_ids()
    pool = Pool()
    try:
        yield pool
    finally:
        pool.finish()
    eventually(lambda: not thread_ids() - before, "the end of every thread that the test started")
