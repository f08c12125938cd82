"""A machine: guest memory, an accelerator, vCPU threads and a Linux made of device backends, put together.

As a library, with asyncio:

    async with Machine(Config(memory=512 << 20)) as machine:
        status = await machine.run(["/bin/busybox", "uname", "-a"])

`pyvmm boot` uses the same class without an event loop: open(), start(), `on_end`, close(). Machines share nothing;
several may live in one process.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmm.accelerators import AcceleratorUnavailable, create
from vmm.memory.frames import Frames
from vmm.memory.pagetable import KernelHalf
from vmm.memory.physical import GuestRam
from vmm.vcpus import VcpuPool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Self, TextIO

    from devices.kernel import Kernel
    from devices.rootfs import MountSpec
    from devices.task.process import Process
    from devices.task.task import Task
    from vmm.cpu import Cpu

MINIMUM_MEMORY = 8 << 20
BLOCK = 2 << 20


class BootError(Exception):
    """A machine or program that cannot be started; one line says why and what to do."""


class MonitorError(Exception):
    """The monitor itself failed while the program ran; the text is the log of it."""


class Config:
    """How a machine is made.

    accel: "kvm", "emulator" or "auto"; memory: guest RAM in bytes, rounded down to 2 MiB; cpus: CPUs that the program
    is told of (None: those this process may use); pin: host CPUs for the vCPUs, by turns; trace: where system calls
    are written to; stats: count and time calls and exits; max_tasks: guest threads at once; stdio: the host
    descriptors that become the program's 0, 1 and 2.

    layers: host directories that make up the root file system, the topmost first (none: programs are ELF files of the
    host, without one); attributes: for each layer the file beside it that says what its directory cannot (vmm/image);
    read_only: nothing in it can be written; mounts: what of the host is in it; tmpfs: empty
    directories in memory; hostname: what uname(2) tells.
    """

    def __init__(
        self,
        *,
        accel: str = "auto",
        memory: int = 2 << 30,
        cpus: int | None = None,
        pin: Sequence[int] = (),
        trace: TextIO | None = None,
        stats: bool = False,
        max_tasks: int = 1000,
        stdio: tuple[int, int, int] = (0, 1, 2),
        layers: Sequence[str | bytes] = (),
        attributes: Sequence[bytes | None] = (),
        read_only: bool = False,
        mounts: Sequence[MountSpec] = (),
        tmpfs: Sequence[bytes] = (),
        hostname: bytes = b"pyvmm",
    ) -> None:
        self.accel = accel
        self.memory = memory // BLOCK * BLOCK
        self.cpus = cpus or len(os.sched_getaffinity(0))
        self.pin = pin
        self.trace = trace
        self.stats = stats
        self.max_tasks = max_tasks
        self.stdio = stdio
        self.layers = [os.fsencode(layer) for layer in layers]
        self.attributes = attributes
        self.read_only = read_only
        self.mounts = mounts
        self.tmpfs = tmpfs
        self.hostname = hostname


class Machine:
    """One virtual machine; runs one program after the other, or several at once."""

    kernel: Kernel

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        self.status = 0
        """Of the program that ended last: its exit code, or 128 + the number of the signal that ended it."""
        self.on_end: Callable[[], Any] = lambda: None
        """Called on a vCPU's thread, kernel lock held, when a program has ended: it must only hand the news on."""
        self._waiting: dict[Process, Callable[[int], None]] = {}
        self._ram: GuestRam | None = None

    def open(self) -> None:
        """Make the machine. BootError when the host cannot."""
        if self.config.memory < MINIMUM_MEMORY:
            raise BootError(f"a machine needs {MINIMUM_MEMORY >> 20} MiB of memory; --memory gives less")
        try:
            self._ram = ram = GuestRam(self.config.memory)
        except (OSError, OverflowError, ValueError) as error:
            raise BootError(
                f"no {self.config.memory >> 20} MiB of guest memory to be had ({error}); try less"
            ) from error
        frames = Frames(ram)
        half = KernelHalf(ram, frames)
        try:
            self._accelerator = create(self.config.accel, ram, frames, half)
        except AcceleratorUnavailable as error:
            ram.close()
            raise BootError(f"{error}; `pyvmm doctor` tells more") from error
        self._pool = VcpuPool(self._accelerator, self.config.pin)
        self.kernel = self._make_kernel(ram, frames, half)

    def _make_kernel(self, ram: GuestRam, frames: Frames, half: KernelHalf) -> Kernel:
        from devices.kernel import Kernel
        from devices.memory.space import MachineMemory

        memory = MachineMemory(ram, frames, half, self._accelerator)
        kernel = Kernel(memory, self, max_tasks=self.config.max_tasks, cpus=self.config.cpus)
        if self.config.stats:
            from devices.stats import Stats

            kernel.stats = Stats()
        if self.config.trace is not None:
            from devices.trace import Tracer

            kernel.tracer = Tracer(self.config.trace)
        kernel.on_process_gone = self._process_gone
        kernel.hostname = self.config.hostname
        if self.config.layers:
            self._make_root(kernel)
        return kernel

    def _make_root(self, kernel: Kernel) -> None:
        from devices.rootfs import RootFs

        config = self.config
        try:
            kernel.root = RootFs(
                kernel,
                config.layers,
                attributes=config.attributes,
                read_only=config.read_only,
                mounts=config.mounts,
                tmpfs=config.tmpfs,
            )
        except OSError as error:
            raise BootError(f"{os.fsdecode(error.filename or b'')}: {error.strerror}") from error

    def start_task(self, task: Task, enter: Callable[[Cpu], None]) -> None:
        """The kernel's way to a vCPU (devices/kernel.py, Threads)."""
        from devices.bus import run_task

        def body(cpu: Cpu) -> None:
            task.started(cpu)
            cpu.set_address_space(task.memory.root)
            enter(cpu)
            run_task(task)

        self._pool.start(body)

    def start(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        env: Sequence[bytes] = (),
        *,
        cwd: bytes = b"/",
        user: str = "",
    ) -> Process:
        """Start a program: argv[0] is looked for in the root file system, or is a static ELF file of the host where
        there is none. `cwd` is the directory that it starts in, `user` whom it runs as (USER[:GROUP], empty: root).
        BootError when it cannot be started."""
        from devices.errors import SysError
        from devices.task.elf import NotLoadable
        from devices.task.exec import start_program

        words = [os.fsencode(a) for a in argv]
        try:
            return start_program(self.kernel, words, list(env), self.config.stdio, cwd=cwd, user=user)
        except NotLoadable as error:
            raise BootError(f"{os.fsdecode(argv[0])}: {error}") from error
        except SysError as error:
            raise BootError(f"{os.fsdecode(argv[0])}: {os.strerror(error.errno)} (in the guest)") from error
        except OSError as error:
            raise BootError(f"{os.fsdecode(argv[0])}: {error.strerror or error}") from error

    def export(self, target: str) -> None:
        """Write what was changed in the root file system to the host's directory `target` (devices/export.py)."""
        from devices.export import Exporter

        root = self.kernel.root
        if root is None:
            raise BootError("there is no root file system to export from")
        exporter = Exporter(self.kernel)
        try:
            with self.kernel.lock:
                exporter.write_locked(root.upper.root, os.fsencode(target))
        except OSError as error:
            raise BootError(f"--export {target}: {error.strerror}") from error

    def _process_gone(self, process: Process) -> None:
        signal = process.status & 0x7F
        self.status = 128 + signal if signal else process.status >> 8 & 0xFF
        waiting = self._waiting.pop(process, None)
        if waiting:
            waiting(self.status)
        self.on_end()

    def signal(self, number: int) -> None:
        """Send a signal, as from the person who runs the machine, to its programs: one from the keyboard to the whole
        process group of each, others to the program alone, which may hand them on."""
        from devices.signals.send import FROM_KEYBOARD, send_from_host_locked

        with self.kernel.lock:
            for process in list(self.kernel.processes.values()):
                if process.job is process or (number in FROM_KEYBOARD and process.pgid == process.job.pgid):
                    send_from_host_locked(process, number)

    def report(self) -> str:
        """What --stats prints."""
        stats = self.kernel.stats
        return stats.report(self.kernel.unknown_calls) if stats else "no statistics were kept"

    def close(self) -> None:
        """End what still runs and give everything back."""
        if self._ram is None:
            return
        with self.kernel.lock:
            for process in list(self.kernel.processes.values()):
                process.exit_group_locked(9)
        stuck = self._pool.close()
        self.kernel.restore_terminals()
        if stuck:
            raise MonitorError(f"vCPU threads did not end: {stuck}")
        self.kernel.close()  # it may still tell the accelerator that memory has changed
        self._accelerator.close()
        self._ram.close()
        self._ram = None

    # asyncio

    async def __aenter__(self) -> Self:
        self.open()
        return self

    async def __aexit__(self, *exception: object) -> None:
        import asyncio

        await asyncio.get_running_loop().run_in_executor(None, self.close)

    async def run(self, argv: Sequence[str | bytes | os.PathLike[str]], env: Mapping[str, str] | None = None) -> int:
        """Run a program to its end; its exit code, or 128 + the number of the signal that ended it.

        Cancelling kills the program. Raises BootError, and MonitorError when the monitor itself failed.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()

        def settle(status: int) -> None:
            if not ended.done():
                ended.set_result(status)

        def tell(status: int) -> None:
            loop.call_soon_threadsafe(settle, status)

        variables = [os.fsencode(f"{name}={value}") for name, value in (env or {}).items()]
        process = self.start(argv, variables)
        with self.kernel.lock:
            if process.tasks:
                self._waiting[process] = tell
            else:
                tell(self.status)
        try:
            status = await ended
        except asyncio.CancelledError:
            with self.kernel.lock:
                process.exit_group_locked(9)
            raise
        if self.kernel.bugs:
            raise MonitorError("\n".join(self.kernel.bugs))
        return status
