"""A kernel without a machine: real tasks and processes on a CPU and a memory that are plain data."""

from __future__ import annotations

import errno
import struct
import threading
import time
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import MagicMock

from devices.errors import SysError
from devices.signals import fpstate
from devices.signals.abi import SA_RESTORER
from devices.signals.queue import Action, SignalActions, SignalQueue
from devices.task.process import Credentials, Process
from devices.task.rlimits import default_rlimits
from devices.task.task import Task
from vmm.cpu import FIXED_RFLAGS, RFLAGS, RIP, RSP, USER_RFLAGS
from vmm.layout import PAGE_SIZE, TASK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from devices.kernel import Kernel
    from devices.memory.space import AddressSpace
    from devices.signals.info import SigInfo
    from devices.vfs.files import FileTable
    from vmm.cpu import Cpu

STACK_TOP = 0x7FFF_FFF0_0000
STACK_PAGES = 16
CODE = 0x40_0000
DATA = 0x60_0000
HANDLER, RESTORER = CODE + 0x100, CODE + 0x200
U64 = (1 << 64) - 1
AVX_SIZE = 832


class FakeMemory:
    """Pages that are there, each writable or not."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.read_only: set[int] = set()
        self.map(STACK_TOP - STACK_PAGES * PAGE_SIZE, STACK_PAGES)
        self.map(DATA, 4)
        self.map(CODE, 1)

    def map(self, address: int, pages: int) -> None:
        for n in range(pages):
            self.pages[address // PAGE_SIZE + n] = bytearray(PAGE_SIZE)

    def _pieces(self, address: int, size: int, write: bool) -> list[tuple[bytearray, int, int]]:
        if address < 0 or address + size > TASK_SIZE:
            raise SysError(errno.EFAULT)
        out = []
        while size:
            number, offset = divmod(address, PAGE_SIZE)
            page = self.pages.get(number)
            if page is None or (write and number in self.read_only):
                raise SysError(errno.EFAULT)
            length = min(size, PAGE_SIZE - offset)
            out.append((page, offset, length))
            address += length
            size -= length
        return out

    def read(self, address: int, size: int) -> bytes:
        return b"".join(bytes(page[o : o + n]) for page, o, n in self._pieces(address, size, False))

    def write(self, address: int, data: bytes) -> None:
        done = 0
        for page, offset, length in self._pieces(address, len(data), True):
            page[offset : offset + length] = data[done : done + length]
            done += length

    def read_u64(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def write_u64(self, address: int, value: int) -> None:
        self.write(address, (value & U64).to_bytes(8, "little"))

    def read_struct(self, address: int, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.read(address, layout.size))

    def write_struct(self, address: int, layout: struct.Struct, *values: Any) -> None:
        self.write(address, layout.pack(*values))


class FakeCpu:
    """Registers and an XSAVE area; counts how often it is loaded and kicked."""

    def __init__(self, fpu_size: int = AVX_SIZE) -> None:
        self.regs = memoryview(bytearray(18 * 8)).cast("Q")
        self.regs[RSP] = STACK_TOP - 0x1000
        self.regs[RIP] = CODE
        self.regs[RFLAGS] = FIXED_RFLAGS
        self.area = fpstate.initial(fpu_size)
        self.loads = 0
        self.kicks = 0

    def save(self) -> list[int]:
        return self.regs.tolist()

    def load(self, state: Sequence[int]) -> None:
        if state[RIP] >> 47 not in (0, 0x1FFFF):
            raise ValueError(f"RIP {state[RIP]:#x} is not canonical")
        for number, value in enumerate(state):
            self.regs[number] = value
        self.regs[RFLAGS] = state[RFLAGS] & USER_RFLAGS | FIXED_RFLAGS
        self.loads += 1

    def get_fpu(self) -> bytes:
        return self.area

    def set_fpu(self, area: bytes) -> None:
        assert len(area) == len(self.area)
        self.area = bytes(area)

    def kick(self) -> None:
        self.kicks += 1


class FakeClock:
    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


class FakeTracer:
    def __init__(self) -> None:
        self.lines: list[tuple[int, int, str, str]] = []

    def signal(self, task: Task, signo: int, code: str, detail: str = "") -> None:
        self.lines.append((task.tid, signo, code, detail))

    def task_gone(self, task: Task) -> None: ...


class FakeAccelerator:
    fpu_size = AVX_SIZE


class FakeKernel:
    INIT_PID = 1

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.max_tasks = 100
        self.cpus = 1
        self.clock = FakeClock()
        self.tasks: dict[int, Task] = {}
        self.processes: dict[int, Process] = {}
        self.tracer: FakeTracer | None = None
        self.accelerator = FakeAccelerator()

    def __getattr__(self, name: str) -> Any:
        """What tasks ask of a kernel that has nothing to do with signals."""
        return MagicMock()


class FakeProcess(Process):
    """A process with what signals need of it."""

    def __init__(self, kernel: FakeKernel, pid: int) -> None:
        self.kernel = cast("Kernel", kernel)
        self.pid = self.pgid = self.sid = pid
        self.parent_pid = kernel.INIT_PID
        self.memory = cast("AddressSpace", FakeMemory())
        self.files = cast("FileTable", None)
        self.tasks: dict[int, Task] = {}
        self.actions = SignalActions()
        self.pending = SignalQueue()
        self.rlimits = default_rlimits(self.kernel)
        self.comm = b"test"
        self.exiting = False
        self.status = 0


class World:
    """A kernel and what runs on it. Everything that a test calls has the kernel lock, as handlers do."""

    def __init__(self) -> None:
        self.kernel = FakeKernel()
        self.kernel.lock.acquire()

    def process(self, pid: int = 100, threads: int = 1, **attributes: Any) -> Process:
        process = FakeProcess(self.kernel, pid)
        self.kernel.processes[pid] = process
        for name, value in attributes.items():
            setattr(process, name, value)
        for n in range(threads):
            self.thread(process, pid + n)
        return process

    def thread(self, process: Process, tid: int, uid: int = 0) -> Task:
        task = Task(process, tid, Credentials(uid))
        task.started(cast("Cpu", FakeCpu()))
        process.tasks[tid] = self.kernel.tasks[tid] = task
        return task

    def task(self, **attributes: Any) -> Task:
        """The only task of a new process."""
        return self.process(**attributes).tasks[100]


def cpu_of(task: Task) -> FakeCpu:
    return cast("FakeCpu", task.cpu)


def memory_of(task: Task) -> FakeMemory:
    return cast("FakeMemory", task.memory)


def catch(process: Process, signo: int, flags: int = 0, mask: int = 0, handler: int = HANDLER) -> None:
    process.actions[signo] = Action(handler, flags | SA_RESTORER, RESTORER, mask)


def signals(*numbers: int) -> int:
    return sum(1 << n - 1 for n in numbers)


def pending(task: Task) -> list[SigInfo]:
    """All that the task would take, emptied."""
    out: list[SigInfo] = []
    while info := task.pending.take(U64) or task.process.pending.take(U64):
        out.append(info)
    return out


def blocked_in(world: World, task: Task, body: Callable[[], object]) -> Blocked:
    return Blocked(world, task, body)


class Blocked:
    """A handler that waits, on a thread of its own; `finish` gives its result once something has woken it."""

    def __init__(self, world: World, task: Task, body: Callable[[], object]) -> None:
        self.world = world
        self.result: object = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(task, body))
        self._thread.start()
        # The body sleeps once it has given up the lock with the task marked as asleep: no time is waited for.
        while True:
            world.kernel.lock.release()
            time.sleep(0)
            world.kernel.lock.acquire()
            if task._asleep or not self._thread.is_alive():
                return

    def _run(self, task: Task, body: Callable[[], object]) -> None:
        with self.world.kernel.lock:
            task.started(task.cpu)
            try:
                self.result = body()
            except BaseException as error:  # handed to finish()
                self.error = error

    def finish(self) -> object:
        self.world.kernel.lock.release()
        self._thread.join(30)
        self.world.kernel.lock.acquire()
        assert not self._thread.is_alive()
        if self.error is not None:
            raise self.error
        return self.result

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()
