"""A machine's Linux: the state that all processes share, and the edges to the monitor that runs it."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Protocol

from devices.bus import ARGUMENT_REGISTERS, Handlers
from devices.errors import SysError
from devices.futex.futex import Futexes
from devices.time.abi import CLOCK_BOOTTIME
from devices.time.clock import Clock
from devices.time.timers import Timers
from devices.time.vdso import Vdso
from devices.vfs.state import Vfs

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.bus import Declaration, Handler
    from devices.fs.hostfile import HostFileBacking
    from devices.memory.space import MachineMemory
    from devices.random import Random
    from devices.rootfs import RootFs
    from devices.stats import Stats
    from devices.task.process import Process
    from devices.task.task import Task
    from devices.trace import Tracer
    from devices.vfs.mount import FileSystemType
    from vmm.cpu import Accelerator, Cpu, Exit

PID_MAX = 4_194_304
WRITE_BACK_NS = 5 * 10**9
"""How long what was written through a shared mapping of a host file may wait to reach it."""


class Threads(Protocol):
    """What gives a task its vCPU and thread (vmm/machine.py)."""

    def start_task(self, task: Task, enter: Callable[[Cpu], None]) -> None:
        """Run `task` on a vCPU of its own: `enter` sets the CPU's state on the new thread. OSError: none to be had."""


class Kernel:
    """The shared state (see devices/bus.py for the lock)."""

    INIT_PID = 1

    def __init__(self, memory: MachineMemory, threads: Threads, *, max_tasks: int, cpus: int) -> None:
        self.lock = threading.Lock()
        self.memory = memory
        memory.on_out_of_memory = self.out_of_memory_locked
        self.accelerator: Accelerator = memory.accelerator
        self.clock = Clock()
        self.futexes = Futexes()
        self.random: Random = memory.random
        self.timers = Timers(self.lock, self.clock)
        memory.on_dirty = lambda: self.timers.add(self.clock.monotonic_ns() + WRITE_BACK_NS, memory.write_back)
        self.vdso = Vdso(memory, self.clock)
        self.threads = threads
        self.max_tasks = max_tasks
        self.cpus = cpus
        """CPUs that the guest is told of."""
        self.root: RootFs | None = None
        """The root file system; None for a machine that boots ELF files of the host one by one."""
        self.image: HostFileBacking | None = None
        """The file that was booted."""
        self._images: list[HostFileBacking] = []
        self.vfs = Vfs()
        self.filesystems: dict[bytes, FileSystemType] = {}
        """What mount(2) can make and has been asked for before (devices/fs/registry.py lists all)."""
        self.hostname = b"pyvmm"
        self.domainname = b"(none)"
        self.tasks: dict[int, Task] = {}
        self.processes: dict[int, Process] = {}
        self.tracer: Tracer | None = None
        self.stats: Stats | None = None
        self.unknown_calls: dict[int, int] = {}
        self.bugs: list[str] = []
        """Reports of the monitor's own failures; a run that has any does not end with the program's status."""
        self.notices: list[str] = []
        """Lines for the person who runs the machine (out of memory...)."""
        self.terminals: dict[int, bytes] = {}
        """termios of host terminals before a guest changed them, by host descriptor: the monitor puts them back."""
        self.on_process_gone: Callable[[Process], None] = lambda process: None
        """Called when a program that the monitor has started has ended; what came from it is being killed."""
        self.handlers = Handlers(self)
        self._last_pid = self.INIT_PID
        self._pids_wrapped = False

    def new_pid_locked(self) -> int:
        """The next free pid or tid. SysError(EAGAIN) when the machine's task limit is reached."""
        import errno

        if max(len(self.tasks), len(self.processes)) >= self.max_tasks:
            raise SysError(errno.EAGAIN, "the machine's task limit")
        while True:
            self._last_pid += 1
            if self._last_pid >= PID_MAX:
                self._last_pid = 300  # RESERVED_PIDS
                self._pids_wrapped = True
            if not self._pid_used_locked(self._last_pid):
                return self._last_pid

    def _pid_used_locked(self, pid: int) -> bool:
        if pid in self.tasks or pid in self.processes:
            return True
        # A group or session whose leader has ended keeps its number
        return self._pids_wrapped and any(pid in (p.pgid, p.sid) for p in self.processes.values())

    def new_dev_locked(self) -> int:
        """A device number for a file system without a device (major 0)."""
        return self.vfs.new_dev_locked()

    def add_task_locked(self, task: Task) -> None:
        self.tasks[task.tid] = task
        task.process.tasks[task.tid] = task
        task.start_ns = self.clock.host.read(CLOCK_BOOTTIME)
        if task.tid == task.process.pid:
            task.process.leader = task
        if self.stats:
            self.stats.tasks += 1

    def start_task_locked(self, task: Task, state: list[int]) -> None:
        """Start a task, already added, with these registers. OSError when there is no vCPU for it."""
        self.threads.start_task(task, lambda cpu: cpu.load(state))

    def abandon_locked(self, process: Process) -> None:
        """Take back a process none of whose tasks has run."""
        for tid in list(process.tasks):
            del self.tasks[tid]
        process.tasks.clear()
        process.files.release_locked()
        process.fs.release_locked()
        process.memory.leave()
        if process.executable is not None:
            process.executable.release_locked()
        process.set_parent_locked(None)
        process.leader = None
        del self.processes[process.pid]

    def root_ready_locked(self, task: Task, stdio: tuple[int, int, int]) -> None:
        """Before the first program is looked for: mount what belongs into the root file system."""
        assert self.root is not None
        self.root.mount_locked(task, stdio)

    def adopt_image_locked(self, image: HostFileBacking) -> None:
        """The machine keeps a booted file open for as long as it lives."""
        self.image = image
        self._images.append(image)

    def close(self) -> None:
        """Give back what the kernel holds of the host. The lock is not held."""
        with self.lock:
            thread = self.timers.close()
            self.memory.write_back()
            if self.root is not None:
                self.root.close_locked()
        if thread is not None:
            thread.join()
        self.clock.vvar = None  # it holds a view of guest RAM, which is to be unmapped
        for image in self._images:
            os.close(image.fd)
        self._images.clear()

    def discard_task_locked(self, task: Task) -> None:
        """Take back add_task_locked() for a task that could not be started."""
        del self.tasks[task.tid], task.process.tasks[task.tid]

    def task_gone_locked(self, task: Task) -> None:
        del self.tasks[task.tid]
        if self.tracer:
            self.tracer.task_gone(task)

    def process_gone_locked(self, process: Process) -> None:
        """It was waited for: its number is free."""
        del self.processes[process.pid]

    def keep_terminal(self, host_fd: int) -> None:
        """Remember a host terminal's settings before the first change."""
        import fcntl
        import termios

        if host_fd not in self.terminals:
            self.terminals[host_fd] = fcntl.ioctl(host_fd, termios.TCGETS, bytes(36))

    def restore_terminals(self) -> None:
        """Put back what keep_terminal() remembered."""
        import fcntl
        import termios

        for host_fd, settings in self.terminals.items():
            fcntl.ioctl(host_fd, termios.TCSETSW, settings)
        self.terminals.clear()

    # What the bus asks

    def observe(self, declaration: Declaration) -> Handler:
        """The handler of a call as this machine wants it run: plain, counted, traced."""
        call = declaration.call
        if self.stats:
            call = self.stats.counting(declaration, call)
        if self.tracer:
            call = self.tracer.tracing(declaration, call)
        return call

    def observe_run(self, run: Callable[[], Exit]) -> Callable[[], Exit]:
        return self.stats.counting_run(run) if self.stats else run

    def count_unknown(self, task: Task, registers: memoryview) -> None:
        """A call that is not served."""
        number = registers[0] & 0xFFFF_FFFF
        self.unknown_calls[number] = self.unknown_calls.get(number, 0) + 1
        if self.tracer:
            self.tracer.unknown(task, number, [registers[r] for r in ARGUMENT_REGISTERS])

    # When something is wrong

    def memory_fault_locked(self, task: Task, problem: Any) -> None:
        """A fault that the address space could not serve: a signal, or memory has run out."""
        from devices.memory.faults import OutOfMemory
        from devices.signals.faults import fault_locked

        if isinstance(problem, OutOfMemory):
            self.out_of_memory_locked()
        else:
            fault_locked(task, problem)

    def out_of_memory_locked(self) -> None:
        """Guest RAM is used up: kill the largest process (mm/oom_kill.c), and say so. While one is ending already, its
        memory is waited for: the fault is tried again."""
        from devices.signals.send import kill_process_locked

        if self.processes and not any(p.exiting and p.tasks for p in self.processes.values()):
            victim = max(self.processes.values(), key=lambda p: p.memory.resident)
            name = victim.comm.decode(errors="replace")
            self.notices.append(f"out of memory: killed process {victim.pid} ({name}); --memory gives the machine more")
            kill_process_locked(victim)

    def report_bug_locked(self, task: Task, error: BaseException) -> None:
        """An exception left a handler or the accelerator: log it whole, and end the process as by SIGSYS."""
        import traceback

        text = "".join(traceback.format_exception(error))
        self._broken_locked(task, f"{text}in task {task.tid} ({task.comm!r}) with {describe_registers(task)}")

    def report_bad_end_locked(self, task: Task, error: BaseException) -> None:
        """A task could not be ended properly: log it, and see to it that nobody waits for its process for ever."""
        import traceback

        self.bugs.append("".join(traceback.format_exception(error)))
        process = task.process
        self.tasks.pop(task.tid, None)
        process.tasks.pop(task.tid, None)
        process.exit_group_locked(0)
        if not process.tasks and self.processes.pop(process.pid, None) is not None:
            if process.parent is not None:
                process.parent.child_wait.wake_all()
                process.set_parent_locked(None)
            if process.job is process:
                self.on_process_gone(process)

    def report_broken_cpu_locked(self, task: Task, stop: Any) -> None:
        """The vCPU cannot go on."""
        what = getattr(stop, "reason", "triple fault")
        self._broken_locked(task, f"task {task.tid} ({task.comm!r}): the vCPU stopped: {what}\n{stop.dump}")

    def _broken_locked(self, task: Task, text: str) -> None:
        import signal

        self.bugs.append(text)
        task.process.exit_group_locked(signal.SIGSYS)


def describe_registers(task: Task) -> str:
    """The program's registers, for a log."""
    from vmm.cpu import REGISTERS

    state = task.cpu.save()
    return " ".join(f"{name}={value:#x}" for name, value in zip(REGISTERS, state, strict=True))
