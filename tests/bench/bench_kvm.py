"""What vmm/kvm costs, by itself: exits, vCPUs, revocation, kicks. Run: ``python -m tests.bench.bench_kvm``.

A bare KVM_RUN loop and the product's run() take turns on one vCPU, and the best round of each counts; the difference is
the Python of an exit. Other figures are medians.
"""

from __future__ import annotations

import threading
import time
from fcntl import ioctl
from typing import TYPE_CHECKING

from tests import harness
from tests.host.kvm_support import CODE, DATA, STACK, Box, Thread, assemble, start
from vmm.cpu import FIXED_RFLAGS, INTERRUPTED, RAX, RFLAGS, RIP, RSP, SYSCALL, PageFault
from vmm.kvm import cpu as cpu_module
from vmm.kvm import probe
from vmm.kvm.abi import KVM_RUN
from vmm.kvm.segments import USER_CODE_BYTES, USER_DATA_BYTES
from vmm.kvm.state import _CS, _SS, REGS_DIRTY, SREGS_DIRTY
from vmm.kvm.system import System

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.kvm.cpu import KvmCpu

Row = tuple[str, str]

CODES = {
    "calls": "1: mov $39, %eax; syscall; jmp 1b",
    "fault": "mov 0x10000, %eax",
    "spin": "1: jmp 1b",
    "touch": "mov (%rbx), %rax; syscall",
}
ROUNDS = 7
_now = time.perf_counter


def _time(body: Callable[[int], None], count: int) -> float:
    """Microseconds of one of the `count` rounds of body(count)."""
    begin = _now()
    body(count)
    return (_now() - begin) / count * 1e6


def _best(bodies: list[Callable[[int], None]], count: int, begin: Callable[[], None]) -> list[float]:
    """The best of each body, which take turns; begin() brings the vCPU to where each starts."""
    times: list[list[float]] = [[] for _ in bodies]
    for _ in range(ROUNDS):
        for body, mine in zip(bodies, times, strict=True):
            begin()
            mine.append(_time(body, count))
    return [min(mine) for mine in times]


def _each(action: Callable[[], object], count: int) -> str:
    """Median and 99th percentile of single calls."""
    samples = []
    for _ in range(count):
        begin = _now()
        action()
        samples.append((_now() - begin) * 1e6)
    return _figure(samples)


def _figure(samples: list[float]) -> str:
    ordered = sorted(samples)
    return f"p50 {ordered[len(ordered) // 2]:.1f} us, p99 {ordered[len(ordered) * 99 // 100]:.1f} us"


def _system_calls(box: Box) -> list[Row]:
    cpu, _ = box.program(assemble(CODES)["calls"])
    fd, regs, dirty = cpu._fd, cpu.regs, cpu._dirty
    back = box.kvm._host.stub.port_return if box.kvm.stub_ring == 0 else CODE + 7

    def begin() -> None:
        start(cpu)
        assert cpu.run() is SYSCALL

    def bare(count: int) -> None:
        for _ in range(count):
            regs[RIP] = back
            regs[RFLAGS] = FIXED_RFLAGS
            dirty[0] = REGS_DIRTY
            ioctl(fd, KVM_RUN, 0)

    def product(count: int) -> None:
        run = cpu.run
        for _ in range(count):
            run()
            regs[RAX] = 1

    bare_us, product_us = _best([bare, product], 2000, begin)
    own = _own_python(cpu)
    return [
        ("system call, bare KVM_RUN loop", f"{bare_us:.2f} us"),
        ("system call, run() and a trivial handler", f"{product_us:.2f} us, {product_us / bare_us:.3f} of bare"),
        ("run() without its ioctl", f"{own:.2f} us"),
    ]


def _own_python(cpu: KvmCpu) -> float:
    """run() with an ioctl that does nothing and an exit that is already there, less a call of that ioctl."""
    rip = cpu._host.stub.doorbell_return
    regs = cpu.regs

    def nothing(fd: int, request: int, argument: int) -> int:
        return 0

    def with_run(count: int) -> None:
        run = cpu.run
        for _ in range(count):
            regs[RIP] = rip
            run()

    def without(count: int) -> None:
        for _ in range(count):
            regs[RIP] = rip
            nothing(3, KVM_RUN, 0)

    real = ioctl
    vars(cpu_module)["ioctl"] = nothing
    try:
        whole, call = _best([with_run, without], 20_000, lambda: None)
    finally:
        vars(cpu_module)["ioctl"] = real
    return whole - call


def _page_faults(box: Box) -> list[Row]:
    cpu, _ = box.program(assemble(CODES)["fault"])
    fd, regs, dirty, page = cpu._fd, cpu.regs, cpu._dirty, cpu._bytes

    def bare(count: int) -> None:
        for _ in range(count):
            regs[RIP], regs[RFLAGS], regs[RSP] = CODE, FIXED_RFLAGS, STACK
            page[_CS : _CS + 24], page[_SS : _SS + 24] = USER_CODE_BYTES, USER_DATA_BYTES
            dirty[0] = REGS_DIRTY | SREGS_DIRTY
            ioctl(fd, KVM_RUN, 0)

    def product(count: int) -> None:
        run = cpu.run
        for _ in range(count):
            run()

    def begin() -> None:
        start(cpu)
        assert isinstance(cpu.run(), PageFault)

    bare_us, product_us = _best([bare, product], 1000, begin)
    return [("page fault, bare KVM_RUN loop", f"{bare_us:.2f} us"), ("page fault, run()", f"{product_us:.2f} us")]


def _life(box: Box) -> list[Row]:
    def whole() -> None:
        with Box():
            pass

    def make_vm() -> None:
        with Box() as other:
            other.cpu(other.space())

    def run_probe() -> None:
        device = System()
        probe._run_probe(device, box.kvm._host.stub)
        device.close()

    def reuse() -> None:
        box.kvm.create_cpu().close()

    cpu = box.kvm.create_cpu()
    area = cpu.get_fpu()
    created: list[KvmCpu] = []
    rows = [
        ("probe of the host, once a process", _each(run_probe, 20)),
        ("memory and VM, made and closed", _each(whole, 20)),
        ("the same with one vCPU", _each(make_vm, 20)),
        ("a new vCPU", _each(lambda: created.append(box.kvm.create_cpu()), 50)),
        ("a pooled vCPU", _each(reuse, 300)),
        ("reset()", _each(cpu.reset, 500)),
        ("get_fpu()", _each(cpu.get_fpu, 500)),
        ("set_fpu()", _each(lambda: cpu.set_fpu(area), 500)),
        ("tsc()", _each(cpu.tsc, 500)),
    ]
    for made in (cpu, *created):
        made.close()
    return rows


def _revocation(box: Box) -> list[Row]:
    cpu, space = box.program(assemble(CODES)["touch"], rbx=DATA)

    def touch() -> None:
        start(cpu, rbx=DATA)
        assert cpu.run() is SYSCALL

    def timed(action: Callable[[], object]) -> str:
        samples = []
        for _ in range(200):
            touch()
            begin = _now()
            action()
            samples.append((_now() - begin) * 1e6)
        return _figure(samples)

    frame = space.frames[DATA]
    return [
        ("revoke() of a page in use", timed(lambda: box.kvm.revoke(frame, 0x1000))),
        ("revoke_all()", timed(box.kvm.revoke_all)),
    ]


def _kicks(box: Box) -> list[Row]:
    """From kick() on one thread to run() having returned on another, whose guest is computing."""
    space = box.space(assemble(CODES)["spin"])
    ready, stop = threading.Event(), threading.Event()
    cpus: list[KvmCpu] = []
    returned = 0.0
    answer = threading.Lock()
    answer.acquire()

    def guest() -> None:
        nonlocal returned
        cpus.append(box.cpu(space))
        ready.set()
        while not stop.is_set():
            assert cpus[0].run() is INTERRUPTED
            returned = _now()
            answer.release()

    thread = Thread(guest)
    ready.wait()
    samples = []
    for number in range(300):
        time.sleep(0.0005)
        if number == 299:
            stop.set()
        begin = _now()
        cpus[0].kick()
        answer.acquire()
        samples.append((returned - begin) * 1e6)
    thread.end()
    return [("kick() of a computing guest until run() returns", _figure(samples))]


def run() -> list[Row]:
    """Rows of (what, figures); a row that says why when there is no KVM."""
    if reason := harness.kvm_missing():
        return [("KVM", f"skipped: {reason}")]
    with Box(64 << 20) as box:
        return [
            ("the stub's ring", str(box.kvm.stub_ring)),
            *_system_calls(box),
            *_page_faults(box),
            *_life(box),
            *_revocation(box),
            *_kicks(box),
        ]


if __name__ == "__main__":
    for name, text in run():
        print(f"{name:50} {text}")
