"""A machine's memory with an emulator on it, and machine code for it, for the emulator's tests and benchmark."""

from __future__ import annotations

import functools
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.cpu import FIXED_RFLAGS, REGISTERS, RFLAGS, RIP, Exit
from vmm.emulator import EmulatorAccelerator
from vmm.memory.frames import Frames
from vmm.memory.pagetable import NX, PRESENT, USER, WRITE, KernelHalf, PageTable
from vmm.memory.physical import GuestRam

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from vmm.cpu import Cpu
    from vmm.emulator.cpu import EmulatorCpu

CODE = 0x40_0000
DATA = 0x60_0000
STACK = 0x7F_0000
READ_WRITE = PRESENT | WRITE | USER | NX
READ_EXECUTE = PRESENT | USER
ALL = PRESENT | WRITE | USER


@functools.cache
def assemble(source: str, address: int = CODE) -> bytes:
    """Machine code of AT&T assembly that is to run at `address`."""
    if not source:
        return b""
    with tempfile.TemporaryDirectory() as folder:
        out, linked, flat = (Path(folder) / name for name in ("a.o", "a.elf", "a.bin"))
        text = source.replace(";", "\n") + "\n"
        commands: tuple[list[str | Path], ...] = (
            ["as", "--64", "-o", out, "-"],
            ["ld", "-Ttext", hex(address), "-e", hex(address), "-o", linked, out],
            ["objcopy", "-O", "binary", "-j", ".text", linked, flat],
        )
        for command in commands:
            done = subprocess.run(command, input=text, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return flat.read_bytes()


class Space:
    """An address space with a page of code, one of data and one of stack."""

    def __init__(self, machine: Machine, source: str | bytes = b"") -> None:
        self._machine = machine
        self.table = PageTable(machine.ram, machine.frames, machine.half)
        self.frames: dict[int, int] = {}
        self.map(CODE, ALL)
        self.map(DATA, READ_WRITE)
        self.map(STACK - 0x1000, READ_WRITE)
        self.put(CODE, assemble(source) if isinstance(source, str) else source)

    @property
    def root(self) -> int:
        return self.table.root

    def map(self, va: int, flags: int, frame: int | None = None) -> int:
        """Map a page, to a new frame or a given one, which is returned."""
        frames = self._machine.frames
        pa = frames.allocate() if frame is None else frame
        if frame is not None:
            frames.reference(frame)
        self.table.map(va, pa, 1, flags)
        self.frames[va] = pa
        return pa

    def put(self, va: int, data: bytes) -> None:
        while data:
            pa = self.frames[va & -0x1000] + (va & 0xFFF)
            part = data[: 0x1000 - (va & 0xFFF)]
            self._machine.ram.view[pa : pa + len(part)] = part
            va, data = va + len(part), data[len(part) :]

    def get(self, va: int, length: int) -> bytes:
        pa = self.frames[va & -0x1000] + (va & 0xFFF)
        return bytes(self._machine.ram.view[pa : pa + length])

    def word(self, va: int) -> int:
        return int.from_bytes(self.get(va, 8), "little")


class Machine:
    """Guest memory and an emulator."""

    def __init__(self, size: int = 64 << 20, slice_seconds: float = 0.005) -> None:
        self.ram = GuestRam(size)
        self.frames = Frames(self.ram)
        self.half = KernelHalf(self.ram, self.frames)
        self.emulator = EmulatorAccelerator(self.ram, self.frames, self.half, slice_seconds)
        self._cpus: list[EmulatorCpu] = []

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for cpu in self._cpus:
            cpu.close()
        self.emulator.close()
        self.ram.close()

    def space(self, source: str | bytes = b"") -> Space:
        return Space(self, source)

    def cpu(self, space: Space, **registers: int) -> EmulatorCpu:
        """A CPU at the beginning of the space's code, with a stack; closed with the machine."""
        cpu = self.emulator.create_cpu()
        self._cpus.append(cpu)
        cpu.set_address_space(space.root)
        start(cpu, **registers)
        return cpu

    def program(self, source: str | bytes, **registers: int) -> tuple[EmulatorCpu, Space]:
        space = self.space(source)
        return self.cpu(space, **registers), space


def start(cpu: Cpu, **registers: int) -> None:
    """Load the registers; the others are 0, but RIP is CODE and RSP is STACK."""
    state = [0] * 18
    state[RIP], state[RFLAGS], state[REGISTERS.index("rsp")] = CODE, FIXED_RFLAGS, STACK
    for name, value in registers.items():
        state[REGISTERS.index(name)] = value
    cpu.load(state)


class Thread(threading.Thread):
    """A thread whose result, or exception, `end()` gives."""

    def __init__(self, body: Callable[[], Exit | object]) -> None:
        super().__init__(daemon=True)
        self._body = body
        self._result: object = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._body()
        except BaseException as error:
            self._error = error

    def end(self, timeout: float = 30) -> object:
        self.join(timeout)
        assert not self.is_alive(), "the thread does not end"
        if self._error is not None:
            raise self._error
        return self._result
