"""The emulator by itself: what a call, a fault, a switch and an engine cost. `python -m tests.bench.bench_emulator`."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from tests.host.emulator_support import CODE, DATA, READ_WRITE, Machine, Thread, start
from vmm.cpu import INTERRUPTED, RAX, SYSCALL, PageFault

if TYPE_CHECKING:
    from collections.abc import Callable

LOOPS = 100_000_000


def _best(times: int, count: int, body: Callable[[], None]) -> float:
    """Microseconds of one of `count` things that `body` does, the best of some times."""
    best = float("inf")
    for _ in range(times):
        begun = time.perf_counter()
        body()
        best = min(best, time.perf_counter() - begun)
    return best / count * 1e6


def _us(value: float) -> str:
    return f"{value:.2f} us"


def in_place(machine: Machine) -> str:
    """SYSCALL, served by a Python function that stores a result, and two instructions of a loop."""
    count = 100_000
    cpu, _ = machine.program("1: mov $110, %eax; syscall; dec %ebx; jnz 1b; xor %eax, %eax; syscall")
    regs = cpu.regs

    def serve() -> bool:
        if not regs[RAX]:
            return False
        regs[RAX] = 1
        return True

    cpu.serve = serve

    def body() -> None:
        start(cpu, rbx=count)
        assert cpu.run() is SYSCALL

    return _us(_best(5, count, body))


def left(machine: Machine) -> str:
    """SYSCALL that ends `run()`, and `run()` again."""
    count = 20_000
    cpu, _ = machine.program("1: mov $110, %eax; syscall; jmp 1b")
    run, regs = cpu.run, cpu.regs

    def body() -> None:
        for _ in range(count):
            run()
            regs[RAX] = 1

    return _us(_best(5, count, body))


def fault(machine: Machine) -> str:
    """A page fault and `run()` again; nothing is mapped."""
    count = 20_000
    cpu, _ = machine.program("mov (%rdi), %al", rdi=0x1234_5000)
    run = cpu.run
    assert isinstance(run(), PageFault)

    def body() -> None:
        for _ in range(count):
            run()

    return _us(_best(5, count, body))


def switch(machine: Machine, same_space: bool) -> str:
    """What `left` costs when another CPU has run in between."""
    count = 10_000
    source = "1: mov $110, %eax; syscall; jmp 1b"
    space = machine.space(source)
    cpus = [machine.cpu(space), machine.cpu(space if same_space else machine.space(source))]
    runs = [cpu.run for cpu in cpus]

    def body() -> None:
        for _ in range(count // 2):
            for run in runs:
                run()

    return _us(_best(5, count, body))


def loop(machine: Machine) -> str:
    cpu, _ = machine.program("1: dec %ecx; jnz 1b; syscall")

    def body() -> None:
        start(cpu, rcx=LOOPS)
        assert cpu.run() is SYSCALL

    return f"{_best(2, 1, body) / 1e6:.2f} s"


def memory(machine: Machine, source: str) -> str:
    """Nanoseconds a turn of a loop over 16 MiB."""
    space = machine.space(source)
    for at in range(0, 16 << 20, 0x1000):
        space.map(0x1000_0000 + at, READ_WRITE)
    cpu = machine.cpu(space)
    count = 2 << 20

    def body() -> None:
        start(cpu, rdi=0x1000_0000, rcx=count)
        assert cpu.run() is SYSCALL

    body()
    return f"{_best(3, count, body) * 1e3:.2f} ns"


def revoke(machine: Machine) -> str:
    def body() -> None:
        for _ in range(10_000):
            machine.emulator.revoke(0, 0x1000)

    return _us(_best(3, 10_000, body))


def revoke_running(machine: Machine) -> str:
    """While another thread runs guest code, which has to be stopped; it has run on before the next time."""
    cpu, space = machine.program("1: incq (%rdi); jmp 1b", rdi=DATA)
    thread = Thread(cpu.run)
    while not space.word(DATA):
        time.sleep(0.001)

    times = []
    for _ in range(300):
        seen = space.word(DATA)
        while space.word(DATA) == seen:
            time.sleep(0.0001)
        begun = time.perf_counter()
        machine.emulator.revoke(0, 0x1000)
        times.append(time.perf_counter() - begun)
    cpu.kick()
    assert thread.end() is INTERRUPTED
    return f"{_us(sorted(times)[150] * 1e6)} (median)"


def _memory_status() -> tuple[int, int]:
    """Virtual and resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        size, resident = file.read().split()[:2]
    page = os.sysconf("SC_PAGESIZE")
    return int(size) * page, int(resident) * page


def engine() -> list[tuple[str, str]]:
    """A machine of 64 MiB and its emulator, closed again; the first of the process is measured by `first_engine`."""
    machines: list[Machine] = []
    before = _memory_status()

    def body() -> None:
        machines.append(Machine())

    took = _best(4, 1, body)
    after = _memory_status()
    for machine in machines:
        machine.emulator.close()
        machine.ram.close()
    size, resident = ((b - a) / len(machines) / (1 << 20) for a, b in zip(before, after, strict=True))
    return [
        ("another engine in the process", f"{took / 1e3:.1f} ms"),
        ("its memory, resident and virtual", f"{resident:.1f} MiB, {size:.0f} MiB"),
    ]


FIRST = """
import time
from vmm.memory.frames import Frames
from vmm.memory.pagetable import KernelHalf
from vmm.memory.physical import GuestRam
ram = GuestRam(64 << 20); frames = Frames(ram); half = KernelHalf(ram, frames)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4 / 1024
before = resident(); a = time.perf_counter()
from vmm.emulator import EmulatorAccelerator
b = time.perf_counter()
accelerator = EmulatorAccelerator(ram, frames, half)
print(f"{(b - a) * 1e3:.1f} ms + {(time.perf_counter() - b) * 1e3:.1f} ms, {resident() - before:.1f} MiB")
"""


def first_engine() -> str:
    """Imports, then the library, the engine and its calibration, in a new process; and what they add to it."""
    import subprocess

    results = [
        subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(3)
    ]
    return min(results, key=lambda text: float(text.split()[3]))


def run() -> list[tuple[str, str]]:
    """(what, figure) of everything here."""
    figures = [("first engine: import + start, resident", first_engine()), *engine()]
    with Machine(96 << 20) as machine:
        figures += [
            ("system call served in place", in_place(machine)),
            ("system call that leaves run()", left(machine)),
            ("page fault that leaves run()", fault(machine)),
            ("call with a switch of CPUs, one address space", switch(machine, True)),
            ("call with a switch of CPUs and address spaces", switch(machine, False)),
            ("revoke, nothing runs", revoke(machine)),
            ("revoke under running code", revoke_running(machine)),
            ("loop of 10^8", loop(machine)),
            (
                "a store to memory in a loop",
                memory(machine, "1: mov %rax, (%rdi); add $8, %rdi; dec %ecx; jnz 1b; syscall"),
            ),
            ("a call and return in a loop", memory(machine, "1: call 2f; dec %ecx; jnz 1b; syscall; 2: ret")),
        ]
    assert CODE
    return figures


if __name__ == "__main__":
    for what, figure in run():
        print(f"{what:50} {figure}")
