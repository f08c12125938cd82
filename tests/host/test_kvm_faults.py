"""What a hostile or broken program can do to a vCPU in one instruction: each ends in the exit that Linux would act on,
with the program's own registers, and the vCPU goes on to run ordinary code.

Hardware and software KVM must agree; where they do not, a comment says how.
"""

from __future__ import annotations

import functools
import os
import threading
from typing import TYPE_CHECKING

import pytest

from tests.host.kvm_support import CODE, DATA, READ_WRITE, STACK, STACK_PAGES, Box, Code, assemble, start, told
from vmm.cpu import (
    AC,
    BP,
    DB,
    DE,
    GP,
    NP,
    OF,
    PF_FETCH,
    PF_PRESENT,
    PF_USER,
    PF_WRITE,
    RAX,
    RBX,
    RCX,
    RDX,
    RFLAGS,
    RIP,
    RSP,
    SS,
    SYSCALL,
    UD,
    XM,
    PageFault,
)
from vmm.layout import DOORBELL, EXCEPTION_STUBS, IDT, STUB, SYSTEM, SYSTEM_CPUS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kvm

READ, WRITE, FETCH, PRESENT = PF_USER, PF_USER | PF_WRITE, PF_USER | PF_FETCH, PF_PRESENT
NON_CANONICAL = 0x8000_0000_0000_0000
POPF_TF = "pushfq; orl $0x100, (%rsp); popfq"

# name: (code, vector, error code). RIP is the label `fault`, or `after:` where the CPU reports it behind.
EXCEPTIONS: dict[str, tuple[str, int, int]] = {
    "ud2": ("ud2", UD, 0),
    "divide by zero": ("xor %ecx, %ecx; fault: div %ecx", DE, 0),
    "hlt": ("hlt", GP, 0),
    "in": ("in $0x40, %al", GP, 0),
    "out": ("out %al, $0x40", GP, 0),
    "out to the port of system calls": ("out %al, $0x10", GP, 0),
    "out to the port of exceptions": ("out %al, $0x11", GP, 0),
    "out dx": ("mov $0x3f8, %edx; fault: outl %eax, %dx", GP, 0),
    "rep insb": ("mov $1, %ecx; mov $0x600000, %edi; fault: rep insb", GP, 0),
    "cli": ("cli", GP, 0),
    "sti": ("sti", GP, 0),
    "iopl 3 is not to be had": ("pushfq; orl $0x3000, (%rsp); popfq; fault: cli", GP, 0),
    "read cr0": ("mov %cr0, %rax", GP, 0),
    "write cr3": ("mov %rax, %cr3", GP, 0),
    "write cr4": ("mov %rax, %cr4", GP, 0),
    "write dr7": ("mov %rax, %dr7", GP, 0),
    "rdmsr": ("mov $0xc0000082, %ecx; fault: rdmsr", GP, 0),
    "wrmsr": ("mov $0xc0000082, %ecx; fault: wrmsr", GP, 0),
    "lgdt": ("lgdt (%rsp)", GP, 0),
    "lidt": ("lidt (%rsp)", GP, 0),
    "lldt": ("lldt %ax", GP, 0),
    "ltr": ("ltr %ax", GP, 0),
    "invlpg": ("invlpg (%rsp)", GP, 0),
    "swapgs": ("swapgs", GP, 0),
    "sysretq": ("sysretq", GP, 0),
    "clts": ("clts", GP, 0),
    "wbinvd": ("wbinvd", GP, 0),
    "xsetbv": ("xor %ecx, %ecx; xor %edx, %edx; mov $1, %eax; fault: xsetbv", GP, 0),
    "null ss": ("xor %eax, %eax; fault: mov %eax, %ss", GP, 0),
    "ss of ring 0": ("mov $0x18, %eax; fault: mov %eax, %ss", GP, 0x18),
    "ds of ring 0": ("mov $0x18, %eax; fault: mov %eax, %ds", GP, 0x18),
    "code of ring 0 as es": ("mov $0x10, %eax; fault: mov %eax, %es", GP, 0x10),
    "tss as gs": ("mov $0x40, %eax; fault: mov %eax, %gs", GP, 0x40),
    "ldt as fs": ("mov $0x0f, %eax; fault: mov %eax, %fs", GP, 0x0C),
    "beyond the gdt": ("mov $0x1000, %eax; fault: mov %eax, %ds", GP, 0x1000),
    "far return to 32-bit code": ("push $0x23; push $0x400000; fault: lretq", GP, 0x20),
    "far return to ring 0": ("push $0x10; push $0x400000; fault: lretq", GP, 0x10),
    "far call to ring 0": ("push $0x10; push $0x400000; fault: rex.w lcall *(%rsp)", GP, 0),
    "far call to nothing": ("movq $0, (%rbx); movq $0, 8(%rbx); fault: rex.w lcall *(%rbx)", GP, 0),
    "iretq to ring 0": (
        "mov %rsp, %rax; push $0x18; push %rax; pushfq; push $0x10; push $0x400000; fault: iretq", GP, 0x10,
    ),
    "iretq to 32-bit code": (
        "mov %rsp, %rax; push $0x2b; push %rax; pushfq; push $0x23; push $0x400000; fault: iretq", GP, 0x20,
    ),
    "non-canonical load": ("movabs $0x8000000000000000, %rax; fault: mov (%rax), %eax", GP, 0),
    "non-canonical jump": ("movabs $0x8000000000000000, %rax; fault: jmp *%rax", GP, 0),
    "non-canonical push": ("movabs $0x8000000000000000, %rsp; fault: push %rax", SS, 0),
    "non-canonical fs base": ("movabs $0x8000000000000000, %rax; fault: wrfsbase %rax", GP, 0),
    "non-canonical gs base": ("movabs $0x800000000000, %rax; fault: wrgsbase %rax", GP, 0),
    "alignment check": ("pushfq; orl $0x40000, (%rsp); popfq; fault: mov 1(%rsp), %eax", AC, 0),
    "sse division by zero": (
        "movl $0x1d80, (%rbx); ldmxcsr (%rbx); mov $1, %eax; cvtsi2ss %eax, %xmm0; xorps %xmm1, %xmm1;"
        "fault: divss %xmm1, %xmm0", XM, 0,
    ),
}  # fmt: skip
# Where software KVM, which runs ring 3 on the host's own descriptor tables, reports something else.
SOFTWARE_QUIRKS: dict[str, tuple[object, ...]] = {
    "far return to ring 0": ("PageFault", STACK + 8, READ),
    "iretq to 32-bit code": ("CpuException", NP, 0x20),
}
SOFTWARE_VECTORS = (0x17, 0x19, 0x1A, 0x1B)
"""Interrupts for which software KVM reports another exception, or inside or behind the instruction."""
# What the lab's CPU, QEMU's TCG, does not check or reports as something else.
LAB_QUIRKS: dict[str, tuple[object, ...]] = {
    "non-canonical push": ("CpuException", GP, 0),
    "non-canonical fs base": ("CpuException", UD, 0),
    "non-canonical gs base": ("CpuException", UD, 0),
    "alignment check": ("PageFault", STACK + 1, READ),
    "sse division by zero": ("CpuException", UD, 0),
}
QUIRKS = {3: SOFTWARE_QUIRKS, 0: LAB_QUIRKS if "PYVMM_LAB" in os.environ else {}}
"""By the ring that the stub runs in."""
# Traps: RIP is behind the instruction.
TRAPS: dict[str, tuple[str, int]] = {
    "int3": ("int3; fault:", BP),
    "int 3": (".byte 0xcd, 3; fault:", BP),
    "int 4": ("int $4; fault:", OF),
    "single step": (f"{POPF_TF}; nop; fault: nop", DB),
    "single step into int3": (f"{POPF_TF}; int3; fault: nop", BP),
}
# name: (code, address, error). Error codes of addresses in the monitor's half are those of a page that is not there,
# as on Linux with page-table isolation; PRESENT in them is allowed and means nothing.
FAULTS: dict[str, tuple[str, int, int]] = {
    "load": ("mov 0x10000, %eax", 0x1_0000, READ),
    "store": ("movl $1, 0x10008", 0x1_0008, WRITE),
    "call": ("mov $0x10000, %eax; call *%rax; fault:", 0x1_0000, FETCH),
    "store to code": ("movl $1, 0x400ff0", CODE + 0xFF0, WRITE | PRESENT),
    "fetch of data": ("mov $0x600010, %eax; jmp *%rax; fault:", DATA + 0x10, FETCH | PRESENT),
    "stack overflow": (f"mov $0x{STACK - STACK_PAGES * 0x1000:x}, %rsp; fault: push %rax",
                       STACK - STACK_PAGES * 0x1000 - 8, WRITE),
    "stack overflow by call": (f"mov $0x{STACK - STACK_PAGES * 0x1000:x}, %rsp; fault: call 1f; 1:",
                               STACK - STACK_PAGES * 0x1000 - 8, WRITE),
    "kernel's half": ("movabs $0xffff888000000000, %rax; fault: mov (%rax), %rax", 0xFFFF_8880_0000_0000, READ),
    "fetch from the kernel's half": ("movabs $0xffffffff81000000, %rax; jmp *%rax; fault:", 0xFFFF_FFFF_8100_0000,
                                     FETCH),
    "load of the idt": ("movabs $0xffff808000000000, %rax; fault: mov (%rax), %rbx", IDT, READ | PRESENT),
    "store to the idt": ("movabs $0xffff808000000000, %rax; fault: mov %rax, (%rax)", IDT, WRITE | PRESENT),
    "jump to an exception's entry": ("movabs $0xffff808000001070, %rax; jmp *%rax; fault:", EXCEPTION_STUBS + 0x70,
                                     FETCH | PRESENT),
    "store to the gdt": ("movabs $0xffff808000100030, %rax; fault: mov %rbx, (%rax)", SYSTEM_CPUS + 0x30,
                         WRITE | PRESENT),
    "stack in a system page": ("movabs $0xffff808000101000, %rsp; fault: push %rax", SYSTEM_CPUS + 0xFF8,
                               WRITE | PRESENT),
    "store to the stub": ("movabs $0xffffffffff5fe000, %rax; fault: mov %eax, (%rax)", STUB, WRITE | PRESENT),
    "fetch from the doorbell": ("movabs $0xffffffffff5fd000, %rax; jmp *%rax; fault:", DOORBELL, FETCH | PRESENT),
}  # fmt: skip
# Accesses to the doorbell that KVM emulates half before it tells: (code, offset, error, is RIP behind it?).
RING = "movabs $0xffffffffff5fd010, %rbx; "
DOORBELL_ACCESSES: dict[str, tuple[str, int, int, bool]] = {
    "store": ("mov %eax, (%rbx)", 0x10, WRITE, True),
    "store where the stub does": ("movabs %eax, 0xffffffffff5fd000", 0, WRITE, True),
    "immediate store": ("movq $-1, (%rbx)", 0x10, WRITE, True),
    "store of 16 bytes": ("movups %xmm0, (%rbx)", 0x10, WRITE, True),
    "push": ("mov %rbx, %rsp; fault: push %rax", 8, WRITE, True),
    "non-temporal store": ("movnti %eax, (%rbx)", 0x10, WRITE, True),
    "load": ("mov (%rbx), %eax", 0x10, READ, False),
    "load of flags": ("cmp %rax, (%rbx)", 0x10, READ, False),
    "load and store": ("lock xadd %rax, (%rbx)", 0x10, READ, False),
    "compare and exchange": ("lock cmpxchg %rax, (%rbx)", 0x10, READ, False),
    "increment": ("incl (%rbx)", 0x10, READ, False),
    "segment load": ("mov (%rbx), %es", 0x10, READ, False),
    "pop": ("mov %rbx, %rsp; fault: pop %rax", 0x10, READ, False),
    "return": ("mov %rbx, %rsp; fault: ret", 0x10, READ, False),
    "indirect jump": ("jmp *(%rbx)", 0x10, READ, False),
    "indirect call": ("call *(%rbx)", 0x10, READ, False),
    "copy from": ("mov %rbx, %rsi; mov $0x600000, %edi; mov $8, %ecx; fault: rep movsb", 0x10, READ, False),
    "copy from, to nowhere": ("mov %rbx, %rsi; mov $0x10000, %edi; mov $8, %ecx; fault: rep movsb", 0x10, READ, False),
}


OTHERS = {
    "int": "int $0x80",
    "rex.w data16 int": "rex.w data16 int $0x80",
    "ordinary": "mov $0x600000, %ebx; mov (%rbx), %eax; inc %eax; push %rax; pop %rdx; syscall; mov %rax, %rbx;syscall",
    "doorbell avx": RING + "vpxor %ymm1, %ymm1, %ymm1; fault: vmovdqu %ymm1, (%rbx)",
    "doorbell sgdt": RING + "fault: sgdt (%rbx)",
    "jump into the stub": "mov $0x27, %eax; mov %r9, %rcx; mov $0x247ffd7, %r11d; jmp *%r8",
    "segments": "mov $0x2b, %eax; mov %eax, %ds; mov %eax, %es; mov %eax, %ss; mov $0x33, %eax; mov %eax, %gs; ud2;"
    "mov %ds, %eax; mov %es, %ebx; mov %gs, %ecx; mov %ss, %edx; ud2",
    "segments over a call": "mov $0x2b, %eax; mov %eax, %ds; syscall; mov %ds, %ebx; mov %ss, %ecx; mov %cs, %edx; ud2",
    "step over a call": f"mov $39, %eax; {POPF_TF}; syscall; nop; fault: nop",
    "icebp": ".byte 0xf1; nop",
    "iretq": "mov %rsp, %rax; push $0x2b; push %rax; pushfq; push $0x33; lea 1f(%rip), %rcx; push %rcx; iretq;"
    "1: fault: ud2",
    "far return": "push $0x33; lea 1f(%rip), %rcx; push %rcx; lretq; 1: fault: ud2",
    "nested task": "pushfq; orl $0x4000, (%rsp); popfq; syscall; fault: ud2",
    "deep recursion": "1: push %rax; jmp 1b",
}


@functools.cache
def codes() -> dict[str, Code]:
    """All snippets, assembled at once."""
    return assemble(
        {f"exception {name}": text for name, (text, *_) in EXCEPTIONS.items()}
        | {f"trap {name}": text for name, (text, *_) in TRAPS.items()}
        | {f"fault {name}": text for name, (text, *_) in FAULTS.items()}
        | {
            f"doorbell {name}": RING + (text if "fault:" in text else f"fault: {text}")
            for name, (text, *_) in DOORBELL_ACCESSES.items()
        }
        | OTHERS
    )


class Subject:
    """One vCPU and one address space for all tests: each shows that the one before has left the vCPU in order."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.space = box.space()
        self.cpu = box.cpu(self.space)

    def start(self, name: str, **registers: int) -> int:
        """Load a snippet; the address of its label `fault`."""
        code = codes()[name]
        self.space.put(CODE, code.text)
        self.space.put(DATA, bytes(64))
        start(self.cpu, rbx=DATA, **registers)
        return CODE + code.fault

    def assert_usable(self) -> None:
        """An ordinary program runs, with two system calls."""
        self.start("ordinary")
        assert self.cpu.run() is SYSCALL
        state = self.cpu.save()
        assert (state[RAX], state[RBX], state[RDX], state[RSP]) == (1, DATA, 1, STACK)
        self.cpu.regs[RAX] = 0x1234
        assert self.cpu.run() is SYSCALL
        assert self.cpu.save()[RBX] == 0x1234


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    with Box() as box:
        yield Subject(box)


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_exception(subject: Subject, name: str) -> None:
    at = subject.start(f"exception {name}")
    _, vector, error = EXCEPTIONS[name]
    exit = told(subject.cpu.run())
    rip = subject.cpu.save()[RIP]
    quirks = QUIRKS[subject.box.kvm.stub_ring]
    if name in quirks:
        assert exit == quirks[name]
    elif name == "far call to ring 0":  # a pointer of 32 or 64 bits, by the maker of the CPU: another selector
        assert exit[:2] == ("CpuException", vector)
    else:
        assert exit == ("CpuException", vector, error)
        # A jump may be reported at its target, by the maker of the CPU.
        assert rip in (at, NON_CANONICAL if name == "non-canonical jump" else at)
    subject.assert_usable()


@pytest.mark.parametrize("prefix", ["", "rex.w data16 "])
def test_software_interrupts(subject: Subject, prefix: str) -> None:
    """INT n is #GP(n * 8 + 2), the gates being ring 0's. QEMU's TCG says n * 16 + 2. INT 3 and INT 4: see TRAPS."""
    name = f"{prefix}int"
    for n in range(256):
        if n in (BP, OF):
            continue
        at = subject.start(name)
        place = subject.space.frames[CODE] + len(codes()[name].text.split(b"\xcd\x80")[0]) + 1
        subject.box.ram.view[place] = n
        exit = told(subject.cpu.run())
        if subject.box.kvm.stub_ring == 3 and n in SOFTWARE_VECTORS:
            assert exit[:2] in (("CpuException", GP), ("CpuException", UD))
        else:
            assert exit in (("CpuException", GP, n * 8 + 2), ("CpuException", GP, n * 16 + 2))
            assert subject.cpu.save()[RIP] == at
    subject.assert_usable()


@pytest.mark.parametrize("name", TRAPS)
def test_trap(subject: Subject, name: str) -> None:
    at = subject.start(f"trap {name}")
    assert told(subject.cpu.run()) == ("CpuException", TRAPS[name][1], 0)
    assert subject.cpu.save()[RIP] == at
    subject.assert_usable()


@pytest.mark.parametrize("name", FAULTS)
def test_page_fault(subject: Subject, name: str) -> None:
    at = subject.start(f"fault {name}")
    _, address, error = FAULTS[name]
    exit = subject.cpu.run()
    assert told(exit) == ("PageFault", address, error)
    state = subject.cpu.save()
    assert state[RIP] == (address if error & FETCH == FETCH else at)
    if "push" in FAULTS[name][0] or "overflow by call" in name:
        assert state[RSP] == address + 8, "a push that faulted has moved RSP"
    subject.assert_usable()


@pytest.mark.parametrize("name", DOORBELL_ACCESSES)
def test_doorbell_access_is_a_page_fault(subject: Subject, name: str) -> None:
    at = subject.start(f"doorbell {name}", rax=0x1111, rcx=0x2222)
    _, offset, error, behind = DOORBELL_ACCESSES[name]
    assert told(subject.cpu.run()) == ("PageFault", DOORBELL + offset, error)
    state = subject.cpu.save()
    if behind:
        assert at < state[RIP] <= at + 15
    else:
        assert state[RIP] == at
        assert state[RAX] == 0x1111, "a load that faulted has loaded"
        assert state[RCX] in (0x2222, 8)
    subject.assert_usable()


def test_doorbell_access_that_kvm_cannot_emulate(subject: Subject) -> None:
    at = subject.start("doorbell avx")
    exit = subject.cpu.run()
    assert isinstance(exit, PageFault)
    assert exit.address & -0x1000 == DOORBELL
    assert exit.error & PF_USER
    assert subject.cpu.save()[RIP] in range(at, at + 9)
    subject.assert_usable()


def test_doorbell_access_that_never_ends_can_be_kicked(subject: Subject) -> None:
    """SGDT to the doorbell: software KVM emulates it again and again, hardware KVM tells of it."""
    subject.start("doorbell sgdt")
    subject.cpu.kick()
    while told(subject.cpu.run())[0] == "Interrupted":
        timer = threading.Timer(0.05, subject.cpu.kick)
        timer.start()
        exit = subject.cpu.run()
        timer.cancel()
        timer.join()
        if told(exit)[0] == "Interrupted":
            break
        assert isinstance(exit, PageFault)
        assert exit.address & -0x1000 == DOORBELL
    subject.cpu.reset()
    subject.assert_usable()


@pytest.mark.parametrize("target", [0, 2, 8, 9, 0x40, 0x41, 0x42, 0x44, 0x7F], ids=hex)
def test_jump_into_the_stub(subject: Subject, target: int) -> None:
    """At best it is a system call that returns to RCX; RCX may be anything."""
    for to in (CODE, 0x7FFF_FFFF_FFFF, 1 << 47, NON_CANONICAL, STUB, SYSTEM):
        check_jump_into_the_stub(subject, target, to)
        subject.assert_usable()


def check_jump_into_the_stub(subject: Subject, target: int, to: int) -> None:
    subject.start("jump into the stub", r8=STUB + target, r9=to)
    exit = subject.cpu.run()
    if exit is SYSCALL:
        assert target in (0, 0x40)
        assert to < 1 << 47
        state = subject.cpu.save()
        assert (state[RIP], state[RAX]) == (to, 0x27)
        assert state[RFLAGS] & 0x3200 == 0x200
        subject.cpu.run()
    else:  # for a program there is nothing at the stub's addresses; or its bytes, from there on, are some load or store
        assert isinstance(exit, PageFault)
        assert STUB <= subject.cpu.save()[RIP] < STUB + 0x1000


def test_a_jump_into_the_stub_returns(subject: Subject) -> None:
    """Where SYSCALL stays in ring 3, jumping to the stub is a system call; where not, it cannot be one."""
    subject.start("jump into the stub", r8=STUB, r9=CODE)
    exit = subject.cpu.run()
    if subject.box.kvm.stub_ring == 3:
        assert exit is SYSCALL
    else:
        assert told(exit) == ("PageFault", DOORBELL, WRITE)


def test_segments_survive_an_exception(subject: Subject) -> None:
    subject.start("segments")
    assert told(subject.cpu.run()) == ("CpuException", UD, 0)
    state = subject.cpu.save()
    state[RIP] += 2
    subject.cpu.load(state)
    assert told(subject.cpu.run()) == ("CpuException", UD, 0)
    state = subject.cpu.save()
    assert [state[n] for n in (RAX, RBX, RCX, RDX)] == [0x2B, 0x2B, 0x33, 0x2B]
    subject.cpu.reset()
    subject.assert_usable()


def test_segments_over_a_system_call(subject: Subject) -> None:
    for full in (False, True):
        subject.start("segments over a call")
        assert subject.cpu.run() is SYSCALL
        if full:
            subject.cpu.load(subject.cpu.save())
        assert told(subject.cpu.run()) == ("CpuException", UD, 0)
        state = subject.cpu.save()
        assert [state[n] for n in (RBX, RCX, RDX)] == [0x2B, 0x2B, 0x33]
        subject.cpu.reset()


def test_single_step_over_a_system_call(subject: Subject) -> None:
    at = subject.start("step over a call")
    steps = 0
    exit = subject.cpu.run()
    while exit is not SYSCALL:
        assert told(exit) == ("CpuException", DB, 0)
        steps += 1
        exit = subject.cpu.run()
    assert subject.cpu.save()[RFLAGS] & 0x100
    assert told(subject.cpu.run()) == ("CpuException", DB, 0)
    assert subject.cpu.save()[RIP] == at
    assert steps == 0
    subject.assert_usable()


def test_icebp(subject: Subject) -> None:
    """A trap on hardware; software KVM reports it before the instruction, QEMU's TCG as #UD."""
    at = subject.start("icebp")
    assert told(subject.cpu.run()) in (("CpuException", DB, 0), ("CpuException", UD, 0))
    assert subject.cpu.save()[RIP] in (at, at + 1)
    subject.assert_usable()


@pytest.mark.parametrize("name", ["iretq", "far return"])
def test_returns_within_ring_3(subject: Subject, name: str) -> None:
    at = subject.start(name)
    assert told(subject.cpu.run()) == ("CpuException", UD, 0)
    assert (subject.cpu.save()[RIP], subject.cpu.save()[RSP]) == (at, STACK)


def test_nested_task_flag_is_dropped(subject: Subject) -> None:
    at = subject.start("nested task")
    assert subject.cpu.run() is SYSCALL
    assert not subject.cpu.save()[RFLAGS] & 0x4000
    assert told(subject.cpu.run()) == ("CpuException", UD, 0)
    assert subject.cpu.save()[RIP] == at
    subject.assert_usable()


def test_stack_overflow_by_recursion(subject: Subject) -> None:
    subject.start("deep recursion")
    bottom = STACK - STACK_PAGES * 0x1000
    assert told(subject.cpu.run()) == ("PageFault", bottom - 8, WRITE)
    assert subject.cpu.save()[RSP] == bottom
    subject.assert_usable()


def test_a_fault_can_be_resumed(subject: Subject) -> None:
    """Not present -> present needs nothing but the entry: the instruction runs again and finds the page."""
    subject.start("fault load")
    assert told(subject.cpu.run()) == ("PageFault", 0x1_0000, READ)
    subject.space.map(0x1_0000, READ_WRITE)
    subject.space.put(0x1_0000, b"\x44\x33\x22\x11")
    assert told(subject.cpu.run()) == ("CpuException", UD, 0)
    assert subject.cpu.save()[RAX] == 0x1122_3344
    subject.assert_usable()
