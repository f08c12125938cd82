"""A machine's memory with KVM on it, and assembled snippets to run there, for vmm/kvm's tests and benchmark."""

from __future__ import annotations

import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests import harness
from vmm.cpu import FIXED_RFLAGS, REGISTERS, RFLAGS, RIP, RSP, Exit
from vmm.kvm import KvmAccelerator
from vmm.memory.frames import Frames
from vmm.memory.pagetable import NX, PRESENT, USER, WRITE, KernelHalf, PageTable
from vmm.memory.physical import GuestRam

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from vmm.kvm.cpu import KvmCpu

CODE = 0x40_0000
DATA = 0x60_0000
STACK = 0x7F_0000
"""End of the stack, of STACK_PAGES pages; below it nothing is mapped."""
STACK_PAGES = 2
READ_WRITE = PRESENT | WRITE | USER | NX
READ_EXECUTE = PRESENT | USER
_SLOT = 512


class Code(NamedTuple):
    """Position-independent machine code, and the offset of the label `fault` in it (0 without one)."""

    text: bytes
    fault: int


def assemble(snippets: Mapping[str, str]) -> dict[str, Code]:
    """Machine code of AT&T assembly, all snippets in one run of the assembler; each ends with an added UD2.

    Statements are separated by `;`, numeric labels are free, `fault:` is the label that Code tells of."""
    source = ["start:"]
    for number, text in enumerate(snippets.values()):
        if "fault:" not in text:
            text = f"fault: {text}"
        source += [f".org {number * _SLOT}, 0xcc", text.replace("fault:", f"fault{number}:").replace(";", "\n"), "ud2"]
    source.append(f".org {len(snippets) * _SLOT}, 0xcc")
    source += [f".long fault{number} - start - {number * _SLOT}" for number in range(len(snippets))]
    with tempfile.TemporaryDirectory() as folder:
        made, flat = Path(folder) / "a.o", Path(folder) / "a.bin"
        commands: tuple[list[str | Path], ...] = (
            ["as", "--64", "-o", made, "-"],
            ["objcopy", "-O", "binary", "-j", ".text", made, flat],
        )
        for command in commands:
            done = subprocess.run(command, input="\n".join(source) + "\n", capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        data = flat.read_bytes()
    faults = memoryview(data)[len(snippets) * _SLOT :].cast("I")
    return {
        name: Code(data[number * _SLOT : (number + 1) * _SLOT], faults[number]) for number, name in enumerate(snippets)
    }


class Space:
    """An address space with a page of code, one of data and a stack."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self.table = PageTable(box.ram, box.frames, box.half)
        self.frames: dict[int, int] = {}
        self.map(CODE, READ_EXECUTE)
        self.map(DATA, READ_WRITE)
        for page in range(1, STACK_PAGES + 1):
            self.map(STACK - page * 0x1000, READ_WRITE)

    @property
    def root(self) -> int:
        return self.table.root

    def map(self, va: int, flags: int, pa: int | None = None) -> int:
        """Map a page to a new frame, or to `pa`; the guest-physical address."""
        if pa is None:
            pa = self._box.frames.allocate()
        self.table.map(va, pa, 1, flags)
        self.frames[va] = pa
        return pa

    def put(self, va: int, data: bytes) -> None:
        """Write into one mapped page, with the length the data has."""
        pa = self.frames[va & -0x1000] + (va & 0xFFF)
        self._box.ram.view[pa : pa + len(data)] = data

    def word(self, va: int) -> int:
        """The 64-bit word at `va`."""
        return int(self._box.ram.words[(self.frames[va & -0x1000] + (va & 0xFFF)) >> 3])


class Box:
    """Guest memory, an accelerator, and CPUs that are closed with it."""

    def __init__(self, size: int = 16 << 20) -> None:
        harness.built("stub.bin")
        self.ram = GuestRam(size)
        self.frames = Frames(self.ram)
        self.half = KernelHalf(self.ram, self.frames)
        self.kvm = KvmAccelerator(self.ram, self.frames, self.half)
        self._cpus: list[KvmCpu] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for cpu in self._cpus:
            cpu.close()
        self.kvm.close()
        self.ram.close()

    def space(self, code: Code | None = None) -> Space:
        space = Space(self)
        if code:
            space.put(CODE, code.text)
        return space

    def cpu(self, space: Space, **registers: int) -> KvmCpu:
        """A CPU at the start of the space's code."""
        cpu = self.kvm.create_cpu()
        self._cpus.append(cpu)
        cpu.set_address_space(space.root)
        start(cpu, **registers)
        return cpu

    def program(self, code: Code, **registers: int) -> tuple[KvmCpu, Space]:
        space = self.space(code)
        return self.cpu(space, **registers), space


def start(cpu: KvmCpu, **registers: int) -> None:
    """Load the registers; the others are 0, but RIP is CODE and RSP is STACK."""
    state = [0] * 18
    state[RIP], state[RFLAGS], state[RSP] = CODE, FIXED_RFLAGS, STACK
    for name, value in registers.items():
        state[REGISTERS.index(name)] = value
    cpu.load(state)


class Thread(threading.Thread):
    """A thread whose result, or exception, `end()` gives."""

    def __init__(self, body: Callable[[], object]) -> None:
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

    def end(self, timeout: float = 60) -> object:
        self.join(timeout)
        assert not self.is_alive(), "the thread does not end"
        if self._error is not None:
            raise self._error
        return self._result


def told(exit: Exit) -> tuple[object, ...]:
    """An exit's kind and what it says, to compare and to show."""
    values = (getattr(exit, name) for name in ("vector", "address", "error", "reason") if hasattr(exit, name))
    return (type(exit).__name__, *values)
