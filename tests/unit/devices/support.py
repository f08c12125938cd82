"""A machine's Linux without a machine: the real kernel, memory and tasks, over an accelerator that runs nothing.

Calls are made as the bus makes them, through the composed handlers with the registers of a CPU that only holds values.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from devices.bus import ARGUMENT_REGISTERS
from devices.kernel import Kernel
from devices.memory.abi import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE
from devices.memory.space import AddressSpace, MachineMemory
from devices.table import TABLE
from devices.task.process import Credentials, Process
from devices.task.task import Task
from devices.vfs.files import FileTable
from vmm.cpu import FIXED_RFLAGS, RAX, RFLAGS, RIP, RSP
from vmm.memory.frames import Frames
from vmm.memory.pagetable import KernelHalf
from vmm.memory.physical import GuestRam

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm.cpu import Cpu, Exit, Tsc

NUMBERS = {entry.name: number for number, entry in TABLE.items()}
XSAVE_SIZE = 576


class IdleCpu:
    """Holds registers; never runs."""

    index = 0

    def __init__(self) -> None:
        self.regs = memoryview(bytearray(18 * 8)).cast("Q")
        self.serve: Callable[[], bool] | None = None
        self.fs_base = self.gs_base = 0
        self.fpu = bytes(XSAVE_SIZE)
        self.kicks = 0

    def run(self) -> Exit:
        raise AssertionError("this CPU does not run")

    def save(self) -> list[int]:
        return self.regs.tolist()

    def load(self, state: Sequence[int]) -> None:
        if not -(1 << 47) <= (state[RIP] ^ 1 << 63) - (1 << 63) < 1 << 47:
            raise ValueError("RIP is not canonical")
        for i, value in enumerate(state):
            self.regs[i] = value

    def get_fpu(self) -> bytes:
        return self.fpu

    def set_fpu(self, area: bytes) -> None:
        self.fpu = bytes(area)

    def set_address_space(self, root: int) -> None:
        """Nothing is run in it."""

    def reset(self) -> None:
        """Nothing to forget."""

    def kick(self) -> None:
        self.kicks += 1

    def close(self) -> None:
        """Nothing to close."""


class IdleAccelerator:
    """Makes CPUs that do not run, and therefore hold no translations."""

    name = "idle"
    max_cpus = 64
    populates = False
    large_pages = True
    discard_revokes = True
    cpuid_features = 0
    hwcap2 = 0
    fpu_size = XSAVE_SIZE
    tsc: Tsc | None = None

    def create_cpu(self) -> Cpu:
        return IdleCpu()

    def revoke(self, address: int, length: int) -> None:
        """No CPU holds a translation."""

    def revoke_all(self) -> None:
        """No CPU holds a translation."""

    def forget_code(self, address: int, length: int) -> None:
        """Nothing was translated."""

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def close(self) -> None:
        """Nothing to close."""


class Threads:
    """Starts nothing; remembers what was to be started."""

    def __init__(self) -> None:
        self.started: list[Task] = []

    def start_task(self, task: Task, enter: Callable[[Cpu], None]) -> None:
        task.started(IdleCpu())
        enter(task.cpu)
        self.started.append(task)


class World:
    """A kernel with one process of one task that has a page of memory at `data` and a stack."""

    def __init__(self, ram_size: int = 32 << 20) -> None:
        self.ram = GuestRam(ram_size)
        self.frames = Frames(self.ram)
        half = KernelHalf(self.ram, self.frames)
        self.threads = Threads()
        memory = MachineMemory(self.ram, self.frames, half, IdleAccelerator())
        self.kernel = Kernel(memory, self.threads, max_tasks=50, cpus=2)
        self.kernel.lock.acquire()
        self.task = self.new_process()
        self.data = self.task.memory.mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)

    def new_process(self) -> Task:
        pid = self.kernel.new_pid_locked()
        process = Process(self.kernel, pid, AddressSpace(self.kernel.memory), FileTable())
        process.memory.rlimits = process.rlimits
        self.kernel.processes[pid] = process
        task = Task(process, pid, Credentials())
        task.started(IdleCpu())
        self.kernel.add_task_locked(task)
        stack = process.memory.map_stack(8 << 20)
        task.cpu.regs[RSP] = stack - 4096
        task.cpu.regs[RFLAGS] = FIXED_RFLAGS
        return task

    def call(self, name: str, *arguments: int, task: Task | None = None) -> int:
        """A system call; its result, or the exception that its handler ends with."""
        task = task or self.task
        registers = task.cpu.regs
        registers[RAX] = NUMBERS[name]
        for register in ARGUMENT_REGISTERS:
            registers[register] = 0
        for register, value in zip(ARGUMENT_REGISTERS, arguments, strict=False):
            registers[register] = value & 0xFFFF_FFFF_FFFF_FFFF
        return self.kernel.handlers.all[NUMBERS[name]](task, registers)

    def close(self) -> None:
        self.kernel.lock.release()
        self.kernel.close()
        self.ram.close()


@contextlib.contextmanager
def world(**options: Any) -> Iterator[World]:
    """A World for a test, with the kernel lock held as in a handler."""
    made = World(**options)
    try:
        yield made
    finally:
        made.close()
