"""pyvmm doctor: what this host offers, and for each thing that is missing what to do about it."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from vmm.cli import parser_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OK, NOTE, MISSING = "ok", "note", "missing"
CALLS = 2000
MEASURED_RAM = 16 << 20
WANTED_FEATURES = ("sse4_2", "popcnt", "aes", "avx", "avx2", "avx512f", "fsgsbase", "rdrand", "rdtscp", "constant_tsc")
INSTALL_UNICORN = "pip install 'unicorn>=2.1.4,<2.2' (it comes with pyvmm's own installation)"


class Finding(NamedTuple):
    """One line of the report; `advice` is for what is missing."""

    topic: str
    state: str
    text: str
    advice: str = ""


def run(words: Sequence[str]) -> int:
    """Run `pyvmm doctor`; 0 when at least one accelerator works, else 1."""
    parser = parser_of("doctor", "Say what this host offers, and what to do about what it lacks.")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(words)
    findings = [*host(), *kvm(), *emulator(), *limits()]
    works = [f.topic for f in findings if f.topic in ("kvm", "emulator") and f.state == OK]
    choice = f"--accel auto takes {works[0]}" if works else "no program can be booted here"
    findings.append(Finding("result", OK if works else MISSING, choice))
    if options.json:
        json.dump([f._asdict() for f in findings], sys.stdout, indent=1)
        print()
    else:
        for f in findings:
            print(f"{f.topic:<10} {f.state:<8} {f.text}")
            if f.advice:
                print(f"{'':<19} -> {f.advice}")
    return 0 if works else 1


def host() -> Iterator[Finding]:
    """The kernel, the CPU and the Python below us."""
    system = os.uname()
    version = ".".join(map(str, sys.version_info[:3]))
    right = system.machine == "x86_64" and system.sysname == "Linux"
    yield Finding(
        "host",
        OK if right else MISSING,
        f"{system.sysname} {system.release} {system.machine}, Python {version}",
        "" if right else "pyvmm runs on x86-64 Linux only",
    )
    flags: set[str] = set()
    model = "unknown"
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as cpuinfo:
        for line in cpuinfo:
            name, _, value = line.partition(":")
            if name.strip() == "flags":
                flags = set(value.split())
            elif name.strip() == "model name":
                model = value.strip()
    yield Finding("cpu", OK, f"{model}, {len(os.sched_getaffinity(0))} CPUs for this process")
    yield Finding("cpu", OK, "features: " + " ".join(f for f in WANTED_FEATURES if f in flags))
    if not flags & {"vmx", "svm"}:
        yield Finding(
            "cpu",
            NOTE,
            "no VMX or SVM: KVM, if it is there, is a software one with dear exits",
            "on your own machine switch virtualization on in the firmware; in a cloud take a machine with nested "
            "virtualization",
        )


def kvm() -> Iterator[Finding]:
    """Whether KVM works, of which kind it is, what an exit costs."""
    from vmm.kvm.probe import probe
    from vmm.kvm.system import KvmUnavailable, System

    try:
        system = System()
    except KvmUnavailable as error:
        yield Finding("kvm", MISSING, str(error), "pyvmm uses the emulator instead, which is slower")
        return
    try:
        known = probe(system)
        cpus = system.max_cpus
    except KvmUnavailable as error:
        yield Finding("kvm", MISSING, str(error), "please report it; pyvmm uses the emulator instead")
        return
    finally:
        system.close()
    kind = "hardware (VMX or SVM)" if known.ring == 0 else "software (page-table virtualization)"
    how = "OUT from ring 0" if known.ring == 0 else "a store to the doorbell page from ring 3"
    yield Finding("kvm", OK, f"{kind}; system calls leave by {how}")
    yield Finding("kvm", OK, f"capabilities: all that are needed; at most {cpus} vCPUs, TSC {known.tsc_khz} kHz")
    yield Finding("kvm", OK, f"state: XCR0 {known.xcr0:#x} ({state_names(known.xcr0)}), CR4 {known.cr4:#x}")
    yield Finding("kvm", OK, f"a system call's exit and return costs {exit_cost('kvm'):.1f} us here")


def state_names(xcr0: int) -> str:
    """The components of XCR0 that programs know by name."""
    names = ((1, "x87"), (2, "SSE"), (4, "AVX"), (0xE0, "AVX-512"))
    return " ".join(name for bits, name in names if xcr0 & bits == bits) or "x87 SSE"


def emulator() -> Iterator[Finding]:
    """Whether Unicorn is there and what a call costs with it."""
    from vmm.emulator.abi import EmulatorUnavailable, load

    try:
        library = load()
        cost = exit_cost("emulator")
    except EmulatorUnavailable as error:
        yield Finding("emulator", MISSING, str(error), INSTALL_UNICORN)
        return
    yield Finding("emulator", OK, f"Unicorn {'.'.join(map(str, library.version))} ({library.path})")
    yield Finding("emulator", OK, f"leaving and entering again costs {cost:.1f} us here (calls served in place, less)")


def exit_cost(accelerator: str) -> float:
    """Mean microseconds of a system call that does nothing, over a loop of `mov $39, %eax; syscall; jmp`."""
    from vmm.accelerators import create
    from vmm.cpu import FIXED_RFLAGS, RFLAGS, RIP
    from vmm.memory.frames import Frames
    from vmm.memory.pagetable import PRESENT, USER, KernelHalf, PageTable
    from vmm.memory.physical import GuestRam

    ram = GuestRam(MEASURED_RAM)
    frames = Frames(ram)
    half = KernelHalf(ram, frames)
    machine = create(accelerator, ram, frames, half)
    cpu = machine.create_cpu()
    try:
        table = PageTable(ram, frames, half)
        code = frames.allocate()
        loop = b"\xb8\x27\0\0\0\x0f\x05\xeb\xf7"
        ram.view[code : code + len(loop)] = loop
        table.map(0x10000, code, 1, PRESENT | USER)
        cpu.set_address_space(table.root)
        state = [0] * 18
        state[RIP], state[RFLAGS] = 0x10000, FIXED_RFLAGS
        cpu.load(state)
        for _ in range(10):
            cpu.run()
        start = time.perf_counter()
        for _ in range(CALLS):
            cpu.run()
        return (time.perf_counter() - start) / CALLS * 1e6
    finally:
        cpu.close()
        machine.close()
        ram.close()


def limits() -> Iterator[Finding]:
    """What bounds guests on this host."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    threads = "unlimited" if soft == resource.RLIM_INFINITY else str(soft)
    yield Finding("limits", OK, f"threads of this user (RLIMIT_NPROC): {threads}; each guest thread is one")
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = files < 1024
    yield Finding(
        "limits",
        NOTE if few else OK,
        f"open files (RLIMIT_NOFILE): {files}; each vCPU needs one",
        f"raise it with `ulimit -n {hard}`" if few else "",
    )
    with open("/proc/meminfo", encoding="utf-8") as meminfo:
        available = next(int(line.split()[1]) >> 10 for line in meminfo if line.startswith("MemAvailable"))
    little = available < 512
    yield Finding(
        "limits",
        NOTE if little else OK,
        f"memory available: {available} MiB; a guest takes what it touches, up to --memory",
        "give guests less with --memory" if little else "",
    )
