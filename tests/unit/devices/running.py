"""Tasks of a World (support.py) that make calls on threads of their own, and sleep in them.

The test's thread holds the kernel lock, as `World` does, but inside `start`, `finish` and `settle`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

from devices.errors import Interrupted, SysError
from devices.signals.queue import Action
from devices.signals.send import send_locked
from devices.task.task import Task
from tests.unit.devices.support import IdleCpu, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 20.0
"""Seconds after which something that should happen at once has not happened."""
SIGUSR1 = 10


class Call(threading.Thread):
    """A system call on a thread of its own. `outcome`: its result, -errno, or the code of an Interrupted."""

    def __init__(self, machine: Machine, task: Task, body: Callable[[], int]) -> None:
        super().__init__(daemon=True)
        self.machine = machine
        self.task = task
        self.body = body
        self.outcome: int | Interrupted | BaseException | None = None

    def run(self) -> None:
        with self.machine.kernel.lock:
            try:
                self.outcome = self.body()
            except SysError as error:
                self.outcome = -error.errno
            except BaseException as error:
                self.outcome = error

    @property
    def asleep(self) -> bool:
        """It sleeps, and nothing has happened that will wake it."""
        return self.task._asleep and not self.task._token

    def result(self) -> int:
        """Wait for the call to end."""
        with self.machine.unlocked():
            self.join(PATIENCE)
        assert not self.is_alive(), "the call does not end"
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        assert self.outcome is not None
        return self.outcome


class Machine:
    """A World with many threads in its process."""

    def __init__(self) -> None:
        self.world = World()
        self.kernel = self.world.kernel
        self.first = self.world.task
        self.data = self.world.data
        self.calls: list[Call] = []

    def thread(self) -> Task:
        """A further task of the process."""
        task = Task(self.first.process, self.kernel.new_pid_locked(), self.first.credentials)
        task.started(IdleCpu())
        self.kernel.add_task_locked(task)
        return task

    @contextlib.contextmanager
    def unlocked(self) -> Iterator[None]:
        self.kernel.lock.release()
        try:
            yield
        finally:
            self.kernel.lock.acquire()

    def run(self, task: Task, body: Callable[[], int]) -> Call:
        """Start `body` on a thread with the lock held; returns when it sleeps or has ended."""
        call = Call(self, task, body)
        self.calls.append(call)
        call.start()
        self.until(lambda: call.asleep or not call.is_alive())
        return call

    def start(self, task: Task, name: str, *arguments: int) -> Call:
        """Start a system call of `task`; returns when it sleeps or has ended."""
        return self.run(task, lambda: self.world.call(name, *arguments, task=task))

    def until(self, condition: Callable[[], bool]) -> None:
        """Let the others run until `condition` holds (it is looked at with the lock held)."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "it does not happen"
            with self.unlocked():
                time.sleep(0.0002)

    def signal(self, task: Task, handler: int = 0x1000) -> None:
        """Send the task a signal that it has a handler for."""
        task.process.actions[SIGUSR1] = Action(handler)
        send_locked(task, SIGUSR1)

    def forget_signals(self, task: Task) -> None:
        """As if the handlers had run."""
        task.pending.discard(~0)
        task.work = False

    def close(self) -> None:
        self.first.process.exit_group_locked(9)
        with self.unlocked():
            for call in self.calls:
                call.join(PATIENCE)
        self.world.close()


@contextlib.contextmanager
def machine() -> Iterator[Machine]:
    made = Machine()
    try:
        yield made
    finally:
        made.close()
