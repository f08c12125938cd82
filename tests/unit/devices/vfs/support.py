"""A machine whose root is a MemFs, with processes and threads that make calls on it."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.vfs.fs_struct import first_fs_locked
from devices.vfs.mount import set_root_locked
from tests.unit.devices.running import Machine
from tests.unit.devices.vfs.memfs import MEMFS, MemFs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.task import Task
    from tests.unit.devices.running import Call

FLOCK = struct.Struct("<hh4xqqi4x")


class Files:
    """The first task's view; another task's calls are made with `task=`."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.kernel = machine.kernel
        self.kernel.filesystems[b"tmpfs"] = MEMFS
        self.fs = MemFs(self.kernel)
        set_root_locked(self.kernel, self.fs)
        self.task = machine.first
        self.task.process.fs.release_locked()
        self.task.process.fs = first_fs_locked(self.kernel)
        self._memory: dict[Task, int] = {self.task: machine.data}

    def process(self) -> Task:
        """The task of another process."""
        return self.machine.world.new_process()

    def address(self, task: Task) -> int:
        if task not in self._memory:
            others = [known for known in self._memory if known.process is task.process]
            self._memory[task] = self._memory[others[0]] if others else task.memory.mmap(0, 1 << 16, 3, 0x22)
        return self._memory[task]

    def put(self, task: Task, arguments: tuple[int | bytes, ...]) -> list[int]:
        """Arguments as a call has them: bytes become C strings."""
        at = self.address(task) + 0x8000
        values = []
        for argument in arguments:
            if isinstance(argument, bytes):
                task.memory.write(at, argument + b"\0")
                values.append(at)
                at += len(argument) + 16 & -16
            else:
                values.append(argument)
        return values

    def call(self, name: str, *arguments: int | bytes, task: Task | None = None) -> int:
        """A system call: its result or -errno."""
        task = task or self.task
        try:
            return self.machine.world.call(name, *self.put(task, arguments), task=task)
        except SysError as error:
            return -error.errno

    def read(self, size: int, task: Task | None = None) -> bytes:
        """What a call has written to the start of the task's memory."""
        task = task or self.task
        return task.memory.read(self.address(task), size)

    def room(self, task: Task | None = None) -> int:
        return self.address(task or self.task)

    def lock(self, fd: int, command: int, kind: int, start: int, length: int, task: Task | None = None) -> int:
        """fcntl with a struct flock."""
        return self.call("fcntl", fd, command, self.flock(kind, start, length, task), task=task)

    def flock(self, kind: int, start: int, length: int, task: Task | None = None) -> int:
        task = task or self.task
        address = self.address(task) + 0x100 * (task.tid % 64)
        task.memory.write(address, FLOCK.pack(kind, 0, start, length, 0))
        return address

    def start_lock(self, task: Task, fd: int, command: int, kind: int, start: int, length: int) -> Call:
        """The same on a thread of its own; returns when it sleeps or has ended."""
        return self.machine.start(task, "fcntl", fd, command, self.flock(kind, start, length, task))


@contextlib.contextmanager
def files() -> Iterator[Files]:
    machine = Machine()
    try:
        yield Files(machine)
    finally:
        machine.close()
