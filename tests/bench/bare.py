"""What pyvmm's Python adds to a system call on KVM: `python -m tests.bench.bare [ROUNDS]`.

The guest (bench_bare.c) calls getppid() 64 times and getpgrp() once, for ever. pyvmm serves these 65 calls as it does
for everyone; but the handler of getpgrp() is this file's. It first notes how long they took since the last time. Then
it lets the same vCPU run on by itself: a loop of KVM_RUN and nothing else than what the guest needs to go on, until the
guest has made its next 65 calls. So both ways are measured on the same vCPU, thread, stub and program, every few
milliseconds by turns, and what drifts on the host drifts for both.

Prints on stderr `served` and `bare`, the best round's, in us a call.
"""

from __future__ import annotations

import sys
import threading
from fcntl import ioctl
from time import perf_counter
from typing import TYPE_CHECKING

from devices.table import TABLE
from tests.harness import program
from vmm.cpu import R11, RAX, RCX, RFLAGS, RIP
from vmm.kvm.abi import KVM_RUN
from vmm.kvm.cpu import Ring3StubCpu
from vmm.machine import Config, Machine

if TYPE_CHECKING:
    from devices.task.task import Task
    from vmm.kvm.cpu import KvmCpu

CALLS = 65
NUMBERS = {entry.name: number for number, entry in TABLE.items()}


class Rounds:
    """The handler of getpgrp() that measures."""

    def __init__(self, count: int) -> None:
        self.served: list[float] = []
        self.bare: list[float] = []
        self._left = count + 1
        self._last = 0.0

    def __call__(self, task: Task, registers: memoryview) -> int:
        now = perf_counter()
        if self._last:  # the program's first round has loaded its pages and the handlers
            self.served.append((now - self._last) / CALLS * 1e6)
            self.bare.append(run_bare(task.cpu) / CALLS * 1e6)  # type: ignore[arg-type]  # it is a KvmCpu
        self._left -= 1
        self._last = perf_counter()
        return self._left <= 0


def run_bare(cpu: KvmCpu) -> float:
    """Serve the next calls of the program with nothing but KVM_RUN; seconds.

    The CPU is where run() has left it after a call. What is written is what a return from a call takes."""
    fd, _, regs, dirty, *_, port_return = cpu._hot  # type: ignore[attr-defined]
    calls = range(CALLS)
    regs[RAX] = 0
    start = perf_counter()
    if isinstance(cpu, Ring3StubCpu):
        for _ in calls:
            ioctl(fd, KVM_RUN, 0)
            regs[RAX] = 0
            regs[RIP] = regs[RCX]
            regs[RFLAGS] = regs[R11]
            dirty[0] = 1
    else:
        for _ in calls:
            ioctl(fd, KVM_RUN, 0)
            regs[RAX] = 0
            regs[RIP] = port_return
            dirty[0] = 1
    return perf_counter() - start


def main() -> int:
    rounds = Rounds(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
    ended = threading.Event()
    machine = Machine(Config(accel="kvm", memory=256 << 20))
    machine.on_end = ended.set
    machine.open()
    try:
        handlers = machine.kernel.handlers
        handlers.load(NUMBERS["getppid"])
        handlers.all[NUMBERS["getpgrp"]] = rounds
        machine.start([str(program("bench_bare"))])
        ended.wait()
    finally:
        machine.close()
    if machine.status or machine.kernel.bugs:
        raise SystemExit("\n".join(machine.kernel.bugs) or f"bench_bare: status {machine.status}")
    sys.stderr.write(f"served {min(rounds.served):.6g} us\nbare {min(rounds.bare):.6g} us\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
