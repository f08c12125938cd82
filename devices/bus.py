"""From an exit of a vCPU to the handler of a system call and back.

    cpu.run() -> Exit -> run_task() -> table.py [number] -> handler(task, arguments) -> RAX -> cpu.run()

Locks, in the order in which they may be taken:

1. `Kernel.lock` guards all state of devices/: every handler runs with it held; it is dropped while the guest runs,
   while a task sleeps (`Task.block`, `Task.wait_host`) and inside `Task.unlocked()`.
2. An accelerator's own locks (vmm/kvm, vmm/emulator) and those of vmm/threads. They call nothing in here while held.

A handler is declared with its C types (devices/args.py); `syscall` composes one lambda that converts the registers and
calls it, so that a call costs no reflection. Handlers are found by number in a list a machine, whose entries load
their subsystem on first use: a program pays the import of what it uses.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, TypeVar

from devices import args
from devices.errors import Interrupted, LeaveGuest, SysError, TaskExit
from devices.table import TABLE
from vmm import cpu as cpus
from vmm.cpu import INTERRUPTED, SYSCALL, CpuException, PageFault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from devices.kernel import Kernel
    from devices.task.task import Task

    Handler = Callable[[Task, memoryview], int]
    """Takes the task and its live registers, returns the result."""

F = TypeVar("F", bound="Callable[..., int]")
U64 = 0xFFFF_FFFF_FFFF_FFFF
ARGUMENT_REGISTERS = (cpus.RDI, cpus.RSI, cpus.RDX, cpus.R10, cpus.R8, cpus.R9)


class Declaration:
    """A system call as declared: its handler, parameters and the composed call."""

    __slots__ = ("call", "handler", "in_place", "name", "parameters")

    def __init__(self, name: str, handler: Callable[..., int], in_place: bool) -> None:
        self.name = name
        self.handler = handler
        self.in_place = in_place
        self.parameters = parameters_of(handler)
        self.call = compose(handler, [argument for _, argument in self.parameters])


DECLARED: dict[str, Declaration] = {}
"""Every declaration of the modules imported so far, by the call's name."""


def syscall(name: str, *, in_place: bool = True) -> Callable[[F], F]:
    """Declare the handler of the system call `name`.

    `in_place=False` is for a call that changes CPU state other than RAX, always waits or takes long in the host: where
    calls can be served without leaving the guest (vmm/cpu.py), such a call leaves it first.
    """

    def declare(handler: F) -> F:
        if name in DECLARED:
            raise ValueError(f"system call {name} is declared twice")
        DECLARED[name] = Declaration(name, handler, in_place)
        return handler

    return declare


def parameters_of(handler: Callable[..., int]) -> list[tuple[str, args.Arg]]:
    """Name and type of each parameter behind `task`; annotations may be strings (postponed evaluation)."""
    found = []
    for name, annotation in list(handler.__annotations__.items()):
        if name in ("task", "return"):
            continue
        if isinstance(annotation, str):
            annotation = eval(annotation, handler.__globals__)
        found.append((name, args.arg_of(annotation)))
    if len(found) > len(ARGUMENT_REGISTERS):
        raise TypeError(f"{handler.__name__} has more parameters than a system call")
    return found


def compose(handler: Callable[..., int], arguments: Iterable[args.Arg]) -> Handler:
    """One lambda (task, registers) that converts and calls: 1 us a call less than a loop over converters."""
    codes = [a.code.format(r=f"r[{register}]") for a, register in zip(arguments, ARGUMENT_REGISTERS, strict=False)]
    source = f"lambda task, r: handler({', '.join(['task', *codes])})"
    composed: Handler = eval(source, {"handler": handler})
    return composed


def unknown(task: Task, registers: memoryview) -> int:
    """A number that pyvmm does not serve."""
    task.kernel.count_unknown(task, registers)
    return -errno.ENOSYS


def leave(task: Task, registers: memoryview) -> int:
    """Stands in the in-place list for a call that must not be served there."""
    raise LeaveGuest


class Handlers:
    """A machine's handlers by number. `all` serves calls that left the guest, `in_place` those that did not."""

    def __init__(self, kernel: Kernel) -> None:
        size = max(TABLE) + 1
        self._kernel = kernel
        self.all: list[Handler] = [unknown] * size
        self.in_place: list[Handler] = [unknown] * size
        for number, entry in TABLE.items():
            if entry.module:
                self.all[number] = self._loader(number)
                self.in_place[number] = leave

    def _loader(self, number: int) -> Handler:
        def load(task: Task, registers: memoryview) -> int:
            self.load(number)
            return self.all[number](task, registers)

        return load

    def load(self, number: int) -> Declaration:
        """Import the module that serves `number` and enter its handler."""
        entry = TABLE[number]
        if entry.name not in DECLARED:
            __import__(entry.module)
        declaration = DECLARED[entry.name]
        call = self._kernel.observe(declaration)
        self.all[number] = call
        self.in_place[number] = call if declaration.in_place else leave
        return declaration


def serve_in_place(task: Task) -> Callable[[], bool]:
    """What an accelerator calls that can serve calls without leaving the guest: see `Cpu.serve`."""
    registers = task.cpu.regs
    handlers = task.kernel.handlers.in_place
    count = len(handlers)
    lock = task.kernel.lock

    def serve() -> bool:
        number = registers[0] & 0xFFFF_FFFF
        if number >= count:
            return False
        with lock:
            if task.work:
                return False
            task.in_place = True
            try:
                registers[0] = handlers[number](task, registers) & U64
            except SysError as error:
                registers[0] = -error.errno & U64
            except LeaveGuest:
                return False
            finally:
                task.in_place = False
        return True

    return serve


def run_task(task: Task) -> None:
    """Run a task on its vCPU's thread until it ends. Returns with the kernel lock dropped."""
    cpu = task.cpu
    kernel = task.kernel
    run = kernel.observe_run(cpu.run)
    registers = cpu.regs
    handlers = kernel.handlers.all
    count = len(handlers)
    acquire = kernel.lock.acquire
    release = kernel.lock.release
    cpu.serve = serve_in_place(task)
    acquire()
    try:
        while True:
            if task.work:
                task.do_work_locked()
            release()
            try:
                stop = run()
            finally:
                acquire()
            if stop is SYSCALL:
                number = registers[0] & 0xFFFF_FFFF
                try:
                    registers[0] = (handlers[number] if number < count else unknown)(task, registers) & U64
                except SysError as error:
                    registers[0] = -error.errno & U64
                except Interrupted as interrupted:
                    registers[0] = -errno.EINTR & U64
                    task.interrupted_call_locked(number, interrupted.restart)
            else:
                _trap_locked(task, stop)
    except TaskExit:
        pass
    except BaseException as error:
        kernel.report_bug_locked(task, error)
    finally:
        try:
            task.gone_locked()
        except BaseException as error:
            kernel.report_bad_end_locked(task, error)
        finally:
            release()


def _trap_locked(task: Task, stop: Any) -> None:
    if stop.__class__ is PageFault:
        task.page_fault_locked(stop.address, stop.error)
    elif stop is INTERRUPTED:
        pass  # whoever kicked has set task.work
    elif stop.__class__ is CpuException:
        task.exception_locked(stop.vector, stop.error)
    else:
        task.kernel.report_broken_cpu_locked(task, stop)
