"""The emulator's CPU alone: calls, faults, exceptions, and that ring 3 is ring 3."""

from __future__ import annotations

import struct

import pytest

from tests.host.emulator_support import (
    ALL,
    CODE,
    DATA,
    READ_EXECUTE,
    READ_WRITE,
    STACK,
    Machine,
    assemble,
    start,
)
from vmm.cpu import (
    BP,
    DB,
    DE,
    FIXED_RFLAGS,
    GP,
    INTERRUPTED,
    OF,
    R8,
    R9,
    R10,
    R11,
    RAX,
    RBX,
    RCX,
    RDI,
    RDX,
    REGISTERS,
    RFLAGS,
    RIP,
    RSI,
    RSP,
    SS,
    SYSCALL,
    UD,
    USER_RFLAGS,
    CpuException,
    InternalError,
    PageFault,
)
from vmm.layout import SYSTEM

pytestmark = pytest.mark.emulator
TF = 1 << 8


@pytest.fixture
def machine():  # type: ignore[no-untyped-def]
    with Machine() as machine:
        yield machine


def test_system_call_without_serve(machine: Machine) -> None:
    cpu, _ = machine.program(
        "mov $39, %eax; syscall; mov %rax, %rbx; mov $1, %eax; syscall", rdi=7, rsi=6, rdx=5, r10=4
    )
    assert cpu.run() is SYSCALL
    assert [cpu.regs[n] for n in (RAX, RDI, RSI, RDX, R10, R8, R9)] == [39, 7, 6, 5, 4, 0, 0]
    state = cpu.save()
    assert (state[RIP], state[RCX], state[RFLAGS], state[R11]) == (CODE + 7, CODE + 7, FIXED_RFLAGS, FIXED_RFLAGS)
    assert state[RSP] == STACK
    cpu.regs[RAX] = 1234
    assert cpu.save()[RAX] == 1234
    assert cpu.run() is SYSCALL
    assert cpu.save()[RBX] == 1234


def test_system_call_in_place(machine: Machine) -> None:
    cpu, _ = machine.program("1: mov $39, %eax; rex.w syscall; mov %rax, %rbx; jmp 1b", rdi=7)
    seen: list[list[int]] = []

    def serve() -> bool:
        seen.append([*cpu.regs[:6].tolist(), *cpu.save(), cpu.fs_base])
        cpu.regs[RAX] = 2**64 - len(seen)
        return len(seen) < 3

    cpu.serve = serve
    cpu.fs_base = 0x1234
    assert cpu.run() is SYSCALL
    assert [call[RAX] for call in seen] == [39, 39, 39]
    assert [call[6 + RBX] for call in seen] == [0, 2**64 - 1, 2**64 - 2]
    # RIP is behind the instruction, prefix or not, while it is served and after.
    assert all(call[6 + RIP] == CODE + 8 and call[-1] == 0x1234 and call[RDI] == 7 for call in seen)
    assert cpu.save()[RIP] == CODE + 8


def test_exception_in_serve_comes_out_of_run(machine: Machine) -> None:
    cpu, _ = machine.program("mov $1, %eax; syscall; mov $2, %eax; syscall")

    def fail() -> bool:
        raise LookupError("from serve")

    cpu.serve = fail
    with pytest.raises(LookupError, match="from serve"):
        cpu.run()
    cpu.serve = None
    assert cpu.run() is SYSCALL
    assert cpu.regs[RAX] == 2
    cpu.serve = lambda: cpu.regs.__setitem__(RAX, -1) or True
    cpu.load([0] * 16 + [CODE, FIXED_RFLAGS])
    with pytest.raises((ValueError, OverflowError)):
        cpu.run()


def fault(machine: Machine, source: str, **registers: int) -> tuple[int, int, int]:
    """Address, error code and distance of RIP from CODE of the fault that a program ends in."""
    cpu, space = machine.program(source, **registers)
    space.map(DATA + 0x1000, READ_EXECUTE)
    found = cpu.run()
    assert isinstance(found, PageFault), (found, vars(found) if hasattr(found, "__dict__") else "")
    return found.address, found.error, cpu.regs[RIP] - CODE


ABSENT = 0x1234_5678_9000


def test_page_fault_error_codes(machine: Machine) -> None:
    absent = ABSENT + 0x123
    assert fault(machine, "nop; mov (%rax), %bl", rax=absent) == (absent, 4, 1)
    assert fault(machine, "nop; mov %bl, (%rax)", rax=absent) == (absent, 6, 1)
    # Read, changed and written: Unicorn reads first, a CPU would report the write at once.
    assert fault(machine, "nop; lock incl (%rax)", rax=absent) == (absent, 4, 1)
    assert fault(machine, "nop; incl (%rax)", rax=DATA + 0x1008) == (DATA + 0x1008, 7, 1)
    assert fault(machine, "jmp *%rax", rax=absent) == (absent, 0x14, absent - CODE)
    assert fault(machine, "jmp *%rax", rax=DATA) == (DATA, 0x15, DATA - CODE)
    assert fault(machine, "nop; mov %bl, (%rax)", rax=DATA + 0x1008) == (DATA + 0x1008, 7, 1)
    assert fault(machine, "nop; mov (%rax), %bl", rax=SYSTEM)[1:] == (4, 1)
    assert fault(machine, "xor %eax, %eax; jmp *%rax") == (0, 0x14, -CODE)
    # An access that crosses into a page that is not there faults at the page.
    assert fault(machine, "mov %rax, 0x600ffd", rax=1) == (DATA + 0x1000, 7, 0)


def test_monitor_pages_are_out_of_reach(machine: Machine) -> None:
    from vmm.emulator import ring3

    assert fault(machine, "mov (%rax), %bl", rax=ring3.GDT) == (ring3.GDT, 5, 0)
    assert fault(machine, "mov %bl, (%rax)", rax=ring3.GATE) == (ring3.GATE, 7, 0)
    assert fault(machine, "mov (%rax), %bl", rax=ring3.PRIVATE) == (ring3.PRIVATE, 4, 0)


def test_fault_map_resume(machine: Machine) -> None:
    cpu, space = machine.program("1: mov %rax, (%rdi); add $0x1000, %rdi; inc %rax; jmp 1b", rdi=ABSENT)
    for n in range(20):
        found = cpu.run()
        assert isinstance(found, PageFault)
        assert (found.address, found.error, cpu.regs[RAX]) == (ABSENT + n * 0x1000, 6, n)
        space.map(found.address, READ_WRITE)
    assert [space.word(ABSENT + n * 0x1000) for n in range(19)] == list(range(19))


def test_exceptions_one_after_another(machine: Machine) -> None:
    """None is taken for a double fault because of the one before it."""
    codes = {"div %ecx": DE, "hlt": GP, "ud2": UD, "mov (%rcx), %al": PageFault, "movw %cx, %ds; movw %ax, %ds": GP}
    for first in codes:
        for second in codes:
            for source in (first, second):
                cpu, _ = machine.program(source, rax=0x50)
                found = cpu.run()
                wanted = codes[source]
                if isinstance(wanted, int):
                    assert isinstance(found, CpuException)
                    assert found.vector == wanted
                else:
                    assert isinstance(found, PageFault)


# source: (vector, error code, distance of RIP from the beginning)
EXCEPTIONS = {
    "nop; xor %ecx, %ecx; div %ecx": (DE, 0, 3),
    "mov $1, %eax; neg %eax; mov $0x80000000, %eax; cltd; mov $-1, %ecx; idiv %ecx": (DE, 0, 18),
    "nop; int3": (BP, 0, 2),
    "nop; .byte 0xcd, 3": (BP, 0, 3),
    "nop; .byte 0xcd, 4": (OF, 0, 3),
    "nop; .byte 0xf1": (DB, 0, 2),
    "nop; ud2": (UD, 0, 1),
    "nop; .byte 0x06": (UD, 0, 1),
    "nop; lock; nop": (UD, 0, 1),
    "nop; int $0": (GP, 2, 1),
    "nop; int $1": (GP, 10, 1),
    "nop; int $6": (GP, 6 * 8 + 2, 1),
    "nop; int $8": (GP, 8 * 8 + 2, 1),
    "nop; int $13": (GP, 13 * 8 + 2, 1),
    "nop; int $14": (GP, 14 * 8 + 2, 1),
    "nop; int $0x80": (GP, 0x80 * 8 + 2, 1),
    "nop; int $0xff": (GP, 0xFF * 8 + 2, 1),
    "movabs $0x8000000000000000, %rax; mov (%rax), %al": (GP, 0, 10),
    "movabs $0x8000000000000000, %rsp; push %rax": (SS, 0, 10),
    "movabs $0x800000000010, %rsp; call .": (SS, 0, 10),
    "movabs $0x8000000000000000, %rbp; mov 8(%rbp), %al": (SS, 0, 10),
    "movabs $0x8000000000000000, %rsp; mov %fs:(%rsp), %al": (GP, 0, 10),
    "movabs $0x8000000000000000, %rsp; mov %rsp, %r12; mov (%r12), %al": (GP, 0, 13),
    "movabs $0x8000000000000000, %rsp; hlt": (GP, 0, 10),
    "nop; mov $0x18, %eax; mov %eax, %ds": (GP, 0x18, 6),
    "nop; mov $0x33, %eax; mov %eax, %ss": (GP, 0x30, 6),
    "nop; mov $0xffff, %eax; mov %eax, %fs": (GP, 0xFFFC, 6),
}
PRIVILEGED = (
    "hlt", "cli", "sti", "in $0x40, %al", "in %dx, %eax", "out %al, $0x40", "out %eax, %dx", "insb", "outsb",
    "rep insl", "rep outsl", "mov %cr0, %rax", "mov %rax, %cr0", "mov %cr2, %rax", "mov %cr3, %rax", "mov %rax, %cr3",
    "mov %cr4, %rax", "mov %rax, %cr4", "mov %cr8, %rax", "mov %rax, %cr8", "mov %db0, %rax", "mov %rax, %db7", "rdmsr",
    "wrmsr", "lgdt 0x600000", "lidt 0x600000", "lldt %ax", "ltr %ax", "lmsw %ax", "clts", "invd", "wbinvd",
    "invlpg 0x600000", "swapgs", "sysretq", "sysretl", "sysexit", "sysenter", "xsetbv", "rdpmc",
)  # fmt: skip
UNDEFINED = (
    "monitor",
    "mwait",
    "vmcall",
    "vmmcall",
    "vmrun",
    "vmload",
    "vmsave",
    "stgi",
    "clgi",
    "skinit",
    "rsm",
    "clac",
)


@pytest.mark.parametrize("source", EXCEPTIONS)
def test_exception(machine: Machine, source: str) -> None:
    cpu, _ = machine.program(source)
    found = cpu.run()
    assert isinstance(found, CpuException)
    assert (found.vector, found.error, cpu.regs[RIP] - CODE) == EXCEPTIONS[source]


def test_privileged_instructions(machine: Machine) -> None:
    values = {"rax": 0x12345678, "rbx": 2, "rdx": 0x40, "rcx": 0xC000_0080, "rsi": DATA, "rdi": DATA + 8, "r11": 0x202}
    for source in PRIVILEGED + UNDEFINED:
        cpu, _ = machine.program("nop\n" + source, **values)
        before = cpu.save()
        found = cpu.run()
        assert isinstance(found, CpuException), (source, found)
        assert (found.vector, found.error) == (UD if source in UNDEFINED else GP, 0), (source, found.vector)
        before[RIP] += 1
        assert cpu.save() == before, source
        assert cpu.run() is found, f"{source} does not fault again"


def test_no_way_to_another_code_segment(machine: Machine) -> None:
    """Far returns, jumps and calls reach the user's code segment and no other."""
    far = "push ${selector}; lea 1f(%rip), %rax; push %rax; lretq; 1: mov $5, %ebx; hlt"
    for selector in (0x33, 0x10, 0x08, 0x23, 0x2B, 0x3B, 0x13, 0x30, 0x31, 0x40, 4, 7, 0xFFFF):
        cpu, _ = machine.program(far.format(selector=selector).replace("push $65535", "push $-1"))
        found = cpu.run()
        assert isinstance(found, CpuException)
        assert found.vector == GP, selector
        assert (cpu.regs[RBX] == 5) == (selector == 0x33), selector
    interrupt = (
        "push $0x2b; push $0x7effff; pushfq; orq $0x3000, (%rsp); push ${selector}; lea 1f(%rip), %rax; push %rax"
    )
    for selector in (0x33, 0x10, 0x08, 0x23):
        cpu, _ = machine.program(interrupt.format(selector=selector) + "; iretq; 1: mov $5, %ebx; cli; hlt")
        found = cpu.run()
        assert isinstance(found, CpuException)
        assert found.vector == GP
        assert (cpu.regs[RBX] == 5) == (selector == 0x33)
        assert not cpu.regs[RFLAGS] & 0x3000
    for source in ("ljmpl *0x600000", "lcalll *0x600000", "rex.w ljmpl *0x600000"):
        for selector in (0x10, 0x23, 0x2B, 0x40):
            cpu, space = machine.program(source)
            space.put(
                DATA, struct.pack("<QH", CODE, selector) if "rex" in source else struct.pack("<IH", CODE, selector)
            )
            found = cpu.run()
            assert isinstance(found, CpuException)
            assert found.vector == GP


def test_flags_that_ring_3_may_not_choose(machine: Machine) -> None:
    cpu, _ = machine.program("push $-1; popfq; pushfq; pop %rbx; pushq $0; popfq; mov $1, %eax; syscall")
    cpu.load([*cpu.save()[:RFLAGS], 2**64 - 1 & ~TF & ~(1 << 18)])
    assert cpu.save()[RFLAGS] & ~(USER_RFLAGS | FIXED_RFLAGS) == 0
    found = cpu.run()
    # TF is among the flags that POPF sets: one instruction later comes the trap.
    assert isinstance(found, CpuException)
    assert (found.vector, cpu.regs[RIP]) == (DB, CODE + 4)
    assert cpu.regs[RFLAGS] & 0x3000 == 0
    assert cpu.regs[RFLAGS] & FIXED_RFLAGS == FIXED_RFLAGS


def test_single_step(machine: Machine) -> None:
    cpu, _ = machine.program("nop; mov $3, %eax; push %rax; syscall; nop; jmp .")
    state = cpu.save()
    state[RFLAGS] |= TF
    cpu.load(state)
    for at in (1, 6, 7):
        found = cpu.run()
        assert isinstance(found, CpuException)
        assert (found.vector, cpu.regs[RIP] - CODE) == (DB, at)
    assert cpu.run() is SYSCALL
    for at in (9, 10, 10):
        found = cpu.run()
        assert isinstance(found, CpuException)
        assert (found.vector, cpu.regs[RIP] - CODE) == (DB, at)


def test_undefined_avx(machine: Machine) -> None:
    """Unicorn would take some for their SSE forms, with another result."""
    for source in (
        "vaddps %xmm1, %xmm2, %xmm3",
        "vaddps %ymm1, %ymm2, %ymm3",
        "vzeroupper",
        "vpxor %xmm0, %xmm0, %xmm0",
    ):
        cpu, _ = machine.program("nop; mov $1, %ebx; " + source)
        found = cpu.run()
        assert isinstance(found, CpuException), source
        assert (found.vector, cpu.regs[RIP] - CODE, cpu.regs[RBX]) == (UD, 6, 1), source
    cpu, _ = machine.program("andn %rax, %rbx, %rcx; pdep %rax, %rbx, %rdx; syscall", rax=0xFF, rbx=0xF0F)
    assert cpu.run() is SYSCALL


def test_load_and_save(machine: Machine) -> None:
    cpu, space = machine.program("mov $60, %eax; syscall; ud2")
    state = [n * 0x0101_0101_0101_0101 for n in range(16)] + [CODE, FIXED_RFLAGS | 0xCD5]
    cpu.load(state)
    assert cpu.save() == state
    assert cpu.run() is SYSCALL
    state[RAX], state[RIP] = 60, CODE + 7
    state[RCX], state[R11] = state[RIP], state[RFLAGS]
    assert cpu.save() == state
    for rip in (1 << 47, 2**63, 0xFFFF_7FFF_FFFF_FFFF, 2**64, -1):
        with pytest.raises(ValueError, match="canonical"):
            cpu.load([0] * 16 + [rip, 0])
    with pytest.raises(OverflowError):
        cpu.load([2**64] + [1] * 17)
    assert cpu.save() == state
    start(cpu, rip=0xFFFF_8000_0000_0000)
    found = cpu.run()
    assert isinstance(found, PageFault)
    assert found.address == 0xFFFF_8000_0000_0000
    # What is changed in `regs` after an exit that is no call counts as well.
    start(cpu, rip=CODE + 7)
    found = cpu.run()
    assert isinstance(found, CpuException)
    cpu.regs[RIP] = CODE
    cpu.regs[RDI] = 99
    assert cpu.run() is SYSCALL
    assert cpu.regs[RDI] == 99
    assert space.root


def test_segment_bases(machine: Machine) -> None:
    cpu, space = machine.program(
        "mov %fs:8, %rax; mov %gs:8, %rbx; mov $0x600100, %ecx; wrfsbase %rcx; rdgsbase %rdx; syscall"
    )
    space.put(DATA + 8, struct.pack("<Q", 11))
    space.put(DATA + 0x88, struct.pack("<Q", 22))
    cpu.fs_base, cpu.gs_base = DATA, DATA + 0x80
    assert cpu.run() is SYSCALL
    assert (cpu.regs[RAX], cpu.save()[RBX], cpu.regs[RDX]) == (11, 22, DATA + 0x80)
    assert (cpu.fs_base, cpu.gs_base) == (DATA + 0x100, DATA + 0x80)
    other, _ = machine.program("syscall")
    assert other.run() is SYSCALL
    # Not loaded now.
    assert (cpu.fs_base, cpu.gs_base) == (DATA + 0x100, DATA + 0x80)
    cpu.fs_base = 5
    assert (cpu.fs_base, other.fs_base) == (5, 0)


def test_reset(machine: Machine) -> None:
    cpu, space = machine.program("pcmpeqd %xmm3, %xmm3; fldpi; mov $1, %ebp; syscall")
    initial = cpu.get_fpu()
    cpu.fs_base = cpu.gs_base = 8
    cpu.serve = lambda: False
    assert cpu.run() is SYSCALL
    assert cpu.get_fpu() != initial
    cpu.kick()
    cpu.reset()
    assert cpu.serve is None
    assert cpu.save() == [0] * RFLAGS + [FIXED_RFLAGS]
    assert (cpu.fs_base, cpu.gs_base, cpu.get_fpu()) == (0, 0, initial)
    cpu.set_address_space(space.root)
    start(cpu)
    assert cpu.run() is SYSCALL


def test_kick_before_run(machine: Machine) -> None:
    cpu, _ = machine.program("mov $1, %eax; syscall; syscall")
    cpu.kick()
    cpu.kick()
    assert cpu.run() is INTERRUPTED
    assert cpu.save()[RIP] == CODE
    assert cpu.run() is SYSCALL
    cpu.regs[RAX] = 77
    cpu.kick()
    assert cpu.run() is INTERRUPTED
    assert (cpu.regs[RAX], cpu.regs[RIP], cpu.regs[RSP]) == (77, CODE + 7, STACK)
    assert cpu.run() is SYSCALL
    assert cpu.regs[RAX] == 77


def test_address_space_is_switched(machine: Machine) -> None:
    first, second = machine.space("mov 0x600000, %rax; syscall; jmp 0x400000"), machine.space()
    second.put(CODE, assemble("mov 0x600000, %rax; syscall; jmp 0x400000"))
    first.put(DATA, b"\1")
    second.put(DATA, b"\2")
    cpu = machine.cpu(first)
    for space, value in ((first, 1), (second, 2), (first, 1), (second, 2)):
        cpu.set_address_space(space.root)
        assert cpu.run() is SYSCALL
        assert cpu.regs[RAX] == value


def test_page_tables_that_lead_nowhere(machine: Machine) -> None:
    """Only the monitor's own mistakes lead here; they are told with every register."""
    cpu, space = machine.program("mov (%rdi), %rax; mov $1, %ebx; syscall", rdi=ABSENT)
    space.table.map(ABSENT, machine.ram.size + 0x1000, 1, READ_WRITE)
    cpu.serve = lambda: True
    found = cpu.run()
    assert isinstance(found, InternalError)
    assert "memory" in found.reason
    assert f"rdi {ABSENT:016x}" in found.dump
    cpu, _ = machine.program("syscall")
    cpu.set_address_space(machine.frames.allocate())
    found = cpu.run()
    assert isinstance(found, InternalError)
    assert "lacks the monitor's half" in found.reason


def test_without_an_address_space(machine: Machine) -> None:
    cpu = machine.emulator.create_cpu()
    with pytest.raises(RuntimeError, match="address space"):
        cpu.run()
    cpu.close()


def test_registers_have_the_protocols_names() -> None:
    assert REGISTERS[RBX] == "rbx"
    assert ALL & READ_EXECUTE == READ_EXECUTE
