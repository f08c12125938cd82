"""A vCPU that behaves: system calls, registers, FPU, address spaces, kicks, the clock, and errors of KVM itself."""

from __future__ import annotations

import functools
import os
import random
import signal
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.host.kvm_support import CODE, DATA, READ_WRITE, STACK, Box, Code, Thread, assemble, start, told
from vmm.cpu import (
    FIXED_RFLAGS,
    INTERRUPTED,
    R8,
    R9,
    R10,
    R11,
    RAX,
    RBX,
    RCX,
    RDI,
    RDX,
    RFLAGS,
    RIP,
    RSI,
    RSP,
    SYSCALL,
    UD,
    USER_RFLAGS,
    InternalError,
    Shutdown,
)
from vmm.kvm import abi
from vmm.kvm import cpu as cpu_module
from vmm.layout import DOORBELL, LARGE_SIZE, STUB
from vmm.memory.pagetable import NX, USER, WRITE
from vmm.threads import Runtime
from vmm.threads.kick import install

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.kvm.cpu import KvmCpu

pytestmark = pytest.mark.kvm

SNIPPETS = {
    "call": "mov $39, %eax; syscall; mov %rax, %rbx; mov $1, %eax; syscall",
    "calls": "1: inc %rbx; syscall; jmp 1b",
    "exceptions": "1: inc %rbx; ud2; jmp 1b",
    "kernel registers": "xor %eax, %eax; dec %eax; popfq; syscall",
    "spin": "1: pause; jmp 1b",
    "spin until told": "1: pause; cmpl $0, (%rbx); je 1b; syscall",
    "sixteen": "mov %rsp, %rax; syscall",
    "load": "mov (%rbx), %rax; syscall; jmp 1f; 1: mov (%rbx), %rax; syscall",
    "increment": "1: lock incq (%rbx); dec %rcx; jnz 1b; mov %rcx, %rax; syscall",
    "fs": "mov %fs:0, %rax; mov %gs:8, %rdx; rdfsbase %rbx; lea 64(%rbx), %rsi; wrfsbase %rsi; syscall; ud2",
    "ymm": "vmovdqu (%rbx), %ymm1; vpaddd %ymm1, %ymm1, %ymm1; syscall; vmovdqu %ymm1, 32(%rbx); syscall",
    "zmm": "vmovdqu64 (%rbx), %zmm17; vpaddq %zmm17, %zmm17, %zmm17; syscall; vmovdqu64 %zmm17, 64(%rbx); syscall",
    "fpu": "fld1; fldpi; movq %rax, %xmm5; ldmxcsr (%rbx); syscall; fstpl 8(%rbx); movq %xmm5, %rdx; stmxcsr 4(%rbx);"
    "syscall",
    "initial fpu": "fnstcw (%rbx); stmxcsr 4(%rbx); fnstenv 8(%rbx); movq %xmm0, %rax; syscall",
    "cpuid": "mov $1, %eax; xor %ecx, %ecx; cpuid; mov %ecx, %r8d; syscall",
    "xgetbv": "xor %ecx, %ecx; xgetbv; syscall",
    "rdtsc": "1: lfence; rdtsc; shl $32, %rdx; or %rdx, %rax; syscall; jmp 1b",
    "rdtscp": "rdtscp; mov %rcx, %rbx; syscall",
    # Answer a ball in the word at RBX (odd: serve, even: return) with RDTSC of now, R12 times; see test_clocks.
    "ping": """
        1:  lea 1(%r13), %r13
            lfence; rdtsc; shl $32, %rdx; or %rdx, %rax; mov %rax, (%rdi); add $16, %rdi
            mov %r13, (%rbx)
            lea 1(%r13), %r13
        2:  cmp %r13, (%rbx); jne 2b
            dec %r12; jnz 1b
            syscall""",
    "pong": """
        1:  lea 1(%r13), %r13
        2:  cmp %r13, (%rbx); jne 2b
            lfence; rdtsc; shl $32, %rdx; or %rdx, %rax; mov %rax, 8(%rdi); add $16, %rdi
            lea 1(%r13), %r13
            mov %r13, (%rbx)
            dec %r12; jnz 1b
            syscall""",
}


@functools.cache
def codes() -> dict[str, Code]:
    return assemble(SNIPPETS)


@pytest.fixture
def box() -> Iterator[Box]:
    with Box() as box:
        yield box


def wait_for(condition: object, what: str = "the guest", seconds: float = 60) -> None:
    """Spin until condition() holds; a test that waits in vain fails."""
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"{what} does not get there"
        time.sleep(0.0005)


# System calls and registers


def test_system_call(box: Box) -> None:
    cpu, _ = box.program(codes()["call"], rdi=7, rsi=6, rdx=5, r10=4, r8=3, r9=2)
    assert cpu.run() is SYSCALL
    assert [cpu.regs[n] for n in (RAX, RDI, RSI, RDX, R10, R8, R9)] == [39, 7, 6, 5, 4, 3, 2]
    state = cpu.save()
    assert (state[RIP], state[RCX], state[RFLAGS], state[R11]) == (CODE + 7, CODE + 7, FIXED_RFLAGS, FIXED_RFLAGS)
    assert state[RSP] == STACK
    cpu.regs[RAX] = 1234
    assert cpu.save()[RAX] == 1234
    assert cpu.run() is SYSCALL
    assert (cpu.save()[RBX], cpu.save()[RAX]) == (1234, 1)


def test_all_other_registers_survive_a_system_call(box: Box) -> None:
    cpu, _ = box.program(codes()["calls"])
    noise = random.Random(1)
    values = [noise.getrandbits(64) for _ in range(16)] + [CODE, FIXED_RFLAGS]
    cpu.load(values)
    for _ in range(3):
        assert cpu.run() is SYSCALL
        values[RBX] += 1
        state = cpu.save()
        kept = [n for n in range(16) if n not in (RCX, R11)]
        assert [state[n] for n in kept] == [values[n] % 2**64 for n in kept]


def test_result_of_a_system_call_may_be_any_word(box: Box) -> None:
    cpu, _ = box.program(codes()["call"])
    assert cpu.run() is SYSCALL
    cpu.regs[RAX] = 2**64 - 38
    cpu.run()
    assert cpu.save()[RBX] == 2**64 - 38


def test_user_flags_survive_and_others_are_not_to_be_had(box: Box) -> None:
    cpu, space = box.program(codes()["kernel registers"])
    space.put(STACK - 8, struct.pack("<Q", 2**64 - 1 & ~0x100))
    start(cpu, rsp=STACK - 8)
    assert cpu.run() is SYSCALL
    state = cpu.save()
    assert state[RFLAGS] == USER_RFLAGS & ~0x100 | FIXED_RFLAGS
    cpu.load([0] * 16 + [CODE, 2**64 - 1 & ~0x100])
    assert cpu.save()[RFLAGS] == USER_RFLAGS & ~0x100 | FIXED_RFLAGS


def test_load_and_save_give_the_same_after_every_kind_of_exit(box: Box) -> None:
    cpu, _ = box.program(codes()["sixteen"])
    values = [0x1000 + n for n in range(18)]
    values[RIP], values[RFLAGS] = CODE, FIXED_RFLAGS
    cpu.load(values)
    assert cpu.save() == values
    assert cpu.run() is SYSCALL
    cpu.load(values)
    assert cpu.save() == values
    assert cpu.run() is SYSCALL
    assert cpu.run().vector == UD  # type: ignore[attr-defined]
    cpu.load(values)
    assert cpu.run() is SYSCALL
    values[RAX], values[RCX], values[R11], values[RIP] = values[RSP], CODE + 5, FIXED_RFLAGS, CODE + 5
    assert cpu.save() == values


@pytest.mark.parametrize("rip", [1 << 47, 1 << 63, 0xFFFF_7FFF_FFFF_FFFF])
def test_load_refuses_a_rip_that_is_not_canonical(box: Box, rip: int) -> None:
    cpu, _ = box.program(codes()["call"])
    before = cpu.save()
    with pytest.raises(ValueError, match="not canonical"):
        cpu.load([0] * 16 + [rip, 0])
    assert cpu.save() == before


def test_segment_bases(box: Box) -> None:
    cpu, space = box.program(codes()["fs"])
    space.put(DATA, struct.pack("<4Q", 11, 22, 33, 44))
    assert (cpu.fs_base, cpu.gs_base) == (0, 0)
    cpu.fs_base, cpu.gs_base = DATA, DATA + 16
    assert (cpu.fs_base, cpu.gs_base) == (DATA, DATA + 16)
    assert cpu.run() is SYSCALL
    state = cpu.save()
    assert (state[RAX], state[RDX], state[RBX]) == (11, 44, DATA)
    assert (cpu.fs_base, cpu.gs_base) == (DATA + 64, DATA + 16)
    cpu.fs_base = 5  # between a system call and its return
    cpu.regs[RAX] = 99
    assert told(cpu.run()) == ("CpuException", UD, 0)
    assert (cpu.fs_base, cpu.gs_base, cpu.save()[RAX]) == (5, DATA + 16, 99)
    for value in (1 << 47, -1, 1 << 64):
        with pytest.raises(ValueError, match="not canonical"):
            cpu.fs_base = value
    cpu.fs_base = 0xFFFF_8000_0000_0000


# FPU


@pytest.mark.parametrize(("name", "bit", "size"), [("ymm", 1 << 2, 32), ("zmm", 0xE4, 64)])
def test_vectors(box: Box, name: str, bit: int, size: int) -> None:
    """AVX works in ring 3, and its registers survive exits and the vCPU's being somewhere else in between."""
    if box.kvm._host.xcr0 & bit != bit:
        pytest.skip(f"this CPU or KVM has no {'AVX' if name == 'ymm' else 'AVX-512'}")
    cpu, space = box.program(codes()[name], rbx=DATA)
    other, _ = box.program(codes()[name], rbx=DATA)
    words = list(range(100, 100 + size // 4))
    space.put(DATA, struct.pack(f"<{size // 4}I", *words))
    assert cpu.run() is SYSCALL
    assert other.run() is SYSCALL
    assert cpu.run() is SYSCALL
    assert space.frames
    at = space.frames[DATA] + size
    assert struct.unpack(f"<{size // 4}I", box.ram.view[at : at + size]) == tuple(2 * word for word in words)


def test_xcr0_is_what_the_program_sees(box: Box) -> None:
    if not box.kvm._host.xcr0:
        pytest.skip("this CPU or KVM has no XSAVE")
    cpu, _ = box.program(codes()["xgetbv"])
    assert cpu.run() is SYSCALL
    assert cpu.save()[RAX] == box.kvm._host.xcr0


def test_fpu_state_can_be_taken_and_set(box: Box) -> None:
    cpu, space = box.program(codes()["fpu"], rbx=DATA, rax=0x1122_3344_5566_7788)
    space.put(DATA, struct.pack("<I", 0x7F80))
    assert cpu.run() is SYSCALL
    area = cpu.get_fpu()
    assert 576 <= len(area) == box.kvm._host.cpuid.xsave_size
    assert struct.unpack_from("<I", area, 24)[0] == 0x7F80
    assert struct.unpack_from("<Q", area, 160 + 5 * 16)[0] == 0x1122_3344_5566_7788
    state = cpu.save()
    other = box.cpu(space)
    other.load(state)
    other.set_fpu(area)
    assert other.run() is SYSCALL
    assert other.save()[RDX] == 0x1122_3344_5566_7788
    assert struct.unpack_from("<d", space.word(DATA + 8).to_bytes(8, "little"))[0] == pytest.approx(3.14159265)
    assert space.word(DATA) >> 32 == 0x7F80
    cpu.set_fpu(other.get_fpu()[:512])  # as of FXSAVE
    assert struct.unpack_from("<I", cpu.get_fpu(), 24)[0] == 0x7F80


def test_hostile_fpu_state_is_masked(box: Box) -> None:
    cpu, _ = box.program(codes()["call"])
    assert cpu.run() is SYSCALL
    good = cpu.get_fpu()
    noise = random.Random(2)
    for area in (b"\xff" * len(good), bytes(5000), b"\xff" * 512, *(noise.randbytes(4096) for _ in range(20))):
        cpu.set_fpu(area)
        after = cpu.get_fpu()
        assert len(after) == len(good)
        assert not struct.unpack_from("<I", after, 24)[0] & ~box.kvm._host.mxcsr_mask
        assert not struct.unpack_from("<Q", after, 512)[0] & ~(box.kvm._host.xcr0 or 3)
    for size in (0, 511):
        with pytest.raises(ValueError, match="too short"):
            cpu.set_fpu(bytes(size))
    assert cpu.run() is SYSCALL


def test_reset_is_a_new_process(box: Box) -> None:
    cpu, space = box.program(codes()["fpu"], rbx=DATA, rax=5)
    space.put(DATA, struct.pack("<I", 0x7F80))
    cpu.fs_base = cpu.gs_base = DATA
    cpu.serve = lambda: True
    assert cpu.run() is SYSCALL
    cpu.kick()
    cpu.reset()
    assert cpu.save() == [0] * 17 + [FIXED_RFLAGS]
    assert (cpu.fs_base, cpu.gs_base) == (0, 0)
    assert cpu.serve is None
    space.put(CODE, codes()["initial fpu"].text)
    start(cpu, rbx=DATA)
    assert cpu.run() is SYSCALL
    state = cpu.save()
    assert state[RAX] == 0
    assert space.word(DATA) & 0xFFFF_FFFF_0000_FFFF == 0x1F80_0000_037F
    assert space.word(DATA + 16) & 0xFFFF == 0xFFFF, "the x87 stack is not empty"


# Address spaces and revocation


def test_two_address_spaces(box: Box) -> None:
    one, two = box.space(codes()["load"]), box.space(codes()["load"])
    one.put(DATA, struct.pack("<Q", 1))
    two.put(DATA, struct.pack("<Q", 2))
    cpu = box.cpu(one, rbx=DATA)
    assert cpu.run() is SYSCALL
    assert cpu.save()[RAX] == 1
    cpu.set_address_space(two.root)
    assert cpu.run() is SYSCALL
    assert cpu.save()[RAX] == 2
    cpu.set_address_space(one.root)
    start(cpu, rbx=DATA)
    assert cpu.run() is SYSCALL
    assert cpu.save()[RAX] == 1


def test_revoke_a_leaf(box: Box) -> None:
    cpu, space = box.program(codes()["load"], rbx=DATA)
    old, new = space.frames[DATA], box.frames.allocate()
    space.put(DATA, struct.pack("<Q", 1))
    box.ram.words[new >> 3] = 2
    assert cpu.run() is SYSCALL
    assert cpu.save()[RAX] == 1
    space.table.replace(DATA, new, READ_WRITE)
    box.kvm.revoke(old, 0x1000)
    assert cpu.run() is SYSCALL
    assert cpu.save()[RAX] == 2
    assert box.ram.words[old >> 3] == 1, "a revoked frame has lost its contents"


def test_revoke_all(box: Box) -> None:
    """After an entry above the leaves was changed: here the whole table of the data's region."""
    cpu, space = box.program(codes()["load"], rbx=DATA)
    space.put(DATA, struct.pack("<Q", 1))
    block = box.frames.allocate_large()
    assert block % LARGE_SIZE == 0
    box.ram.words[(block + DATA % LARGE_SIZE) >> 3] = 2
    assert cpu.run() is SYSCALL
    assert cpu.save()[RAX] == 1
    words = box.ram.words
    directory = space.table._directories[0]
    words[directory + (DATA >> 21)] = block | 0xE7
    box.kvm.revoke_all()
    start(cpu, rbx=DATA)
    assert cpu.run() is SYSCALL
    assert cpu.save()[RAX] == 2
    assert cpu.run() is SYSCALL
    assert cpu.save()[RAX] == 2


def test_revoke_all_from_many_threads_while_vcpus_run(box: Box) -> None:
    rounds, increments = 40, 200_000
    space = box.space(codes()["increment"])

    def guest() -> object:
        cpu = box.cpu(space, rbx=DATA, rcx=increments)
        return told(cpu.run())

    def revoker() -> None:
        for _ in range(rounds):
            box.kvm.revoke_all()
            box.kvm.revoke(space.frames[DATA], 0x1000)

    guests = [Thread(guest) for _ in range(2)]
    revokers = [Thread(revoker) for _ in range(3)]
    for thread in revokers:
        thread.end()
    assert [thread.end() for thread in guests] == [("Syscall",)] * 2
    assert space.word(DATA) == 2 * increments


# Kicks


def test_kick_before_run(box: Box) -> None:
    cpu, _ = box.program(codes()["call"])
    cpu.kick()
    cpu.kick()
    assert cpu.run() is INTERRUPTED
    assert cpu.save()[RIP] == CODE
    assert cpu.run() is SYSCALL


def test_kick_after_a_system_call(box: Box) -> None:
    """The call's result is there, and the program's registers are its own, in whatever ring the stub runs."""
    cpu, _ = box.program(codes()["call"])
    assert cpu.run() is SYSCALL
    cpu.regs[RAX] = 77
    cpu.kick()
    assert cpu.run() is INTERRUPTED
    state = cpu.save()
    assert (state[RIP], state[RAX], state[RFLAGS]) == (CODE + 7, 77, FIXED_RFLAGS)
    assert cpu.run() is SYSCALL
    assert cpu.save()[RBX] == 77


def test_kick_ends_a_loop(box: Box) -> None:
    ready = threading.Event()
    cpus: list[KvmCpu] = []

    def body() -> object:
        cpu, _ = box.program(codes()["spin"])
        cpus.append(cpu)
        ready.set()
        exit = cpu.run()
        return exit is INTERRUPTED and cpu.save()[RIP] - CODE in (0, 2) and cpu.run() is INTERRUPTED

    thread = Thread(body)
    assert ready.wait(60)
    time.sleep(0.01)
    cpus[0].kick()
    wait_for(lambda: not cpus[0]._kicked, "the first kick")
    cpus[0].kick()
    assert thread.end() is True


def test_a_job_of_vmm_threads_is_kicked(box: Box) -> None:
    runtime = Runtime(limit=1, name="test")
    ready = threading.Event()
    cpus: list[KvmCpu] = []

    def body() -> bool:
        cpu, _ = box.program(codes()["spin"])
        cpus.append(cpu)
        ready.set()
        return cpu.run() is INTERRUPTED

    job = runtime.spawn(body, dedicated=True)
    assert ready.wait(60)
    cpus[0].kick()
    assert job.join(60)
    cpus[0].kick()  # its thread is gone
    runtime.close()


def test_a_signal_that_is_no_kick_is_not_seen(box: Box) -> None:
    ready = threading.Event()
    space = box.space(codes()["spin until told"])

    def body() -> object:
        cpu = box.cpu(space, rbx=DATA, rax=5)
        ready.set()
        return told(cpu.run())

    thread = Thread(body)
    assert ready.wait(60)
    assert thread.ident is not None
    for _ in range(20):
        signal.pthread_kill(thread.ident, install())
        time.sleep(0.001)
    assert thread.is_alive()
    space.put(DATA, b"\x01")
    assert thread.end() == ("Syscall",)


@pytest.mark.parametrize("name", ["calls", "exceptions"])
def test_no_kick_is_lost(box: Box, name: str) -> None:
    """Against a program that leaves the guest without end: kicks hit every place of run(), stub and exception entry."""
    rounds = 500
    answered = 0
    stop = False
    ready = threading.Event()
    cpus: list[KvmCpu] = []

    def body() -> int:
        nonlocal answered
        cpu, _ = box.program(codes()[name])
        cpus.append(cpu)
        ready.set()
        exits = 0
        while not stop:
            exit = cpu.run()
            state = cpu.save()
            assert CODE <= state[RIP] < CODE + 16
            if exit is INTERRUPTED:
                assert state[RBX] in (exits, exits + 1)
                answered += 1
                continue
            exits += 1
            assert state[RBX] == exits
            if name == "calls":
                assert exit is SYSCALL
            else:
                assert told(exit) == ("CpuException", UD, 0)
                state[RIP] += 2
                cpu.load(state)
        return exits

    thread = Thread(body)
    assert ready.wait(60)
    for number in range(rounds):
        cpus[0].kick()
        end = time.monotonic() + 60
        while answered <= number:
            assert thread.is_alive()
            assert time.monotonic() < end, "a kick was lost"
            time.sleep(0)  # the other thread needs the GIL
    stop = True
    assert thread.end() != 0
    assert answered == rounds


@pytest.mark.parametrize("offset", [0, 0x40])
def test_kick_inside_the_stub_waits_for_its_exit(box: Box, offset: int) -> None:
    cpu, _ = box.program(codes()["call"])
    start(cpu, rip=STUB + offset, rcx=CODE, r11=FIXED_RFLAGS)
    cpu.kick()
    exit = cpu.run()
    if offset == 0 and box.kvm.stub_ring == 3:
        assert exit is SYSCALL
    elif offset == 0:
        assert told(exit) == ("PageFault", DOORBELL, 6)
    else:
        assert told(exit) == ("PageFault", STUB + offset, 0x14)
    start(cpu)
    assert cpu.run() is INTERRUPTED
    assert cpu.run() is SYSCALL


def test_a_closed_cpu_is_not_kicked(box: Box) -> None:
    cpu, space = box.program(codes()["call"])
    cpu.close()
    cpu.close()
    cpu.kick()
    again = box.cpu(space)
    assert again is cpu
    assert again.run() is SYSCALL


def test_a_kick_that_cannot_be_sent_is_not_remembered(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, _ = box.program(codes()["call"])
    sent: list[int] = []

    def refuse() -> None:
        raise OSError("no signal to be had")

    monkeypatch.setattr(cpu, "_interrupt", refuse)
    with pytest.raises(OSError, match="no signal"):
        cpu.kick()
    monkeypatch.setattr(cpu, "_interrupt", lambda: sent.append(1))
    cpu.kick()
    assert sent == [1]


# CPUID and the clock


def test_cpuid(box: Box) -> None:
    cpus = [box.program(codes()["cpuid"])[0] for _ in range(3)]
    for cpu in cpus:
        assert cpu.run() is SYSCALL
    states = [cpu.save() for cpu in cpus]
    assert {state[RDX] for state in states} == {box.kvm.cpuid_features}
    assert all(state[R8] >> 31 & 1 for state in states), "the hypervisor bit is not set"
    if box.kvm.stub_ring == 0:  # elsewhere CPUID may be the host's
        assert [state[RBX] >> 24 for state in states] == [cpu.index for cpu in cpus]
        assert not any(state[R8] >> 5 & 1 for state in states), "VMX is shown"


def test_tsc(box: Box) -> None:
    tsc = box.kvm.tsc
    if tsc is None:
        pytest.skip("the host does not trust its TSC")
    assert tsc.khz > 100_000
    cpu, _ = box.program(codes()["rdtsc"])
    seen = []
    for _ in range(10):
        seen.append(tsc.read(cpu))
        assert cpu.run() is SYSCALL
        seen.append(cpu.save()[RAX])
    assert seen == sorted(set(seen))


def test_clocks_of_vcpus_agree(box: Box) -> None:
    """Two vCPUs, made at different times, play ping-pong and note RDTSC: no ball arrives before it was sent."""
    balls = 200
    space = box.space(codes()["ping"])
    second = box.frames.allocate()
    box.ram.view[second : second + len(codes()["pong"].text)] = codes()["pong"].text
    table = 0x61_0000
    space.map(CODE + 0x1000, 5, second)
    for page in range(2):
        space.map(table + page * 0x1000, READ_WRITE)
    start_line = threading.Barrier(2)

    def play(name: str, delay: float) -> str:
        time.sleep(delay)
        cpu = box.cpu(space, rbx=DATA, rdi=table, r12=balls, rip=CODE + (0x1000 if name == "pong" else 0))
        start_line.wait(60)
        return str(told(cpu.run()))

    players = [Thread(lambda: play("pong", 0)), Thread(lambda: play("ping", 0.3))]
    for player in players:
        assert player.end() == "('Syscall',)"
    times = [space.word(table + 8 * n) for n in range(2 * balls)]
    assert all(times)
    assert times == sorted(times), "a ball was returned before it was served"


def test_tsc_aux_is_the_index(box: Box) -> None:
    """On hardware. Software KVM shows the host's number of the host's CPU."""
    if box.kvm.stub_ring != 0:
        pytest.skip("software KVM shows the host's TSC_AUX")
    for index in range(2):
        cpu, _ = box.program(codes()["rdtscp"])
        assert cpu.run() is SYSCALL
        assert cpu.save()[RBX] == cpu.index == index


# Errors of KVM itself


def test_shutdown(box: Box) -> None:
    """With an IDT that was destroyed, the first exception is a triple fault; reset() brings the vCPU back."""
    cpu, space = box.program(codes()["load"], rbx=0x1_0000, rdi=0x1234_5678)
    table = bytes(box.kvm._own[:0x1000])
    box.kvm._own[:0x1000] = bytes(0x1000)
    exit = cpu.run()
    box.kvm._own[:0x1000] = table
    assert isinstance(exit, Shutdown)
    for word in ("rip", "cr3", "gdt", "frame"):
        assert word in exit.dump
    cpu.reset()
    cpu.set_address_space(space.root)
    start(cpu, rbx=DATA)
    assert cpu.run() is SYSCALL
    start(cpu, rbx=0x1_0000)
    assert told(cpu.run()) == ("PageFault", 0x1_0000, 4)


def test_access_to_no_memory(box: Box) -> None:
    cpu, space = box.program(codes()["load"], rbx=0x10_0000_0000)
    nothing = box.ram.size + (1 << 30)
    space.map(0x10_0000_0000, USER | WRITE | NX | 1, nothing)
    exit = cpu.run()
    assert isinstance(exit, InternalError)
    assert hex(nothing) in exit.reason
    cpu.reset()
    start(cpu, rbx=DATA)
    assert cpu.run() is SYSCALL


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (abi.KVM_EXIT_FAIL_ENTRY, "refused to enter"),
        (abi.KVM_EXIT_UNKNOWN, "KVM exit 0"),
        (abi.KVM_EXIT_HLT, "KVM exit 5"),
        (abi.KVM_EXIT_INTERNAL_ERROR, "KVM_EXIT_INTERNAL_ERROR 3, data 0x11 0x22"),
        (abi.KVM_EXIT_IO, "no exception of a program"),
    ],
)
def test_exits_that_should_not_be(box: Box, monkeypatch: pytest.MonkeyPatch, reason: int, text: str) -> None:
    cpu, _ = box.program(codes()["call"])

    def run(fd: int, request: int, argument: int) -> int:
        cpu._page.exit_reason = reason
        if reason == abi.KVM_EXIT_INTERNAL_ERROR:
            internal = cpu._page.exit.internal
            internal.suberror, internal.ndata = abi.KVM_INTERNAL_ERROR_DELIVERY_EV, 2
            internal.data[0], internal.data[1] = 0x11, 0x22
        return 0

    monkeypatch.setattr(cpu_module, "ioctl", run)
    exit = cpu.run()
    assert isinstance(exit, InternalError)
    assert text in exit.reason
    assert "rip" in exit.dump


def test_kvm_run_fails(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, _ = box.program(codes()["call"])

    def run(fd: int, request: int, argument: int) -> int:
        raise OSError(14, os.strerror(14))

    monkeypatch.setattr(cpu_module, "ioctl", run)
    exit = cpu.run()
    assert isinstance(exit, InternalError)
    assert "Bad address" in exit.reason
