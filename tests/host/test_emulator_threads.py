"""The emulator's CPUs together: by turns, stopped from other threads, with memory that changes under them."""

from __future__ import annotations

import os
import struct
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.host.emulator_support import (
    ALL,
    CODE,
    DATA,
    READ_EXECUTE,
    READ_WRITE,
    Machine,
    Space,
    Thread,
    assemble,
    start,
)
from vmm.cpu import (
    FIXED_RFLAGS,
    INTERRUPTED,
    PF_PRESENT,
    PF_USER,
    PF_WRITE,
    RAX,
    RBX,
    RCX,
    RDI,
    REGISTERS,
    RIP,
    SYSCALL,
    CpuException,
    InternalError,
    PageFault,
)
from vmm.emulator.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.emulator.cpu import EmulatorCpu
    from vmm.emulator.turns import Contender

pytestmark = pytest.mark.emulator
COUNT = "1: inc %rax; mov %rax, (%rdi); jmp 1b"
SPIN = "1: jmp 1b"


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


def until(condition) -> None:  # type: ignore[no-untyped-def]
    """Wait, in small pieces, for what another thread brings about."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.0005)


def counts(space: Space, at: int = DATA) -> bool:
    """Is the program that counts at `at` at work now?"""
    before = space.word(at)
    until(lambda: space.word(at) != before)
    return True


def test_many_contexts(machine: Machine) -> None:
    """Every register, the FPU and FS base of many CPUs, in address spaces of their own, one after the other."""
    source = "movq %rdi, %xmm5; cvtsi2sd %rdi, %xmm9; fildq (%rsi); wrfsbase %rsi; syscall; movq %xmm5, %rax;" + (
        "fistpq (%rsi); rdfsbase %rcx; cvttsd2si %xmm9, %rbx; syscall"
    )
    cpus = []
    for n in range(60):
        cpu, space = machine.program(source, rdi=n + 1, rsi=DATA + 8 * n, **{f"r{k}": n * k for k in range(8, 16)})
        space.put(DATA + 8 * n, struct.pack("<Q", 1000 + n))
        cpus.append((cpu, space))
    for cpu, _ in cpus:
        assert cpu.run() is SYSCALL
    for n, (cpu, space) in enumerate(cpus):
        space.put(DATA + 8 * n, bytes(8))
        assert cpu.run() is SYSCALL
        state = cpu.save()
        assert (state[RAX], state[RBX], cpu.fs_base) == (n + 1, n + 1, DATA + 8 * n)
        assert state[8:11] + state[12:16] == [n * k for k in (8, 9, 10, 12, 13, 14, 15)]
        assert space.word(DATA + 8 * n) == 1000 + n


def test_index_is_used_again(machine: Machine) -> None:
    made = [machine.emulator.create_cpu() for _ in range(5)]
    assert [cpu.index for cpu in made] == [0, 1, 2, 3, 4]
    made[2].close()
    made[2] = machine.emulator.create_cpu()
    assert made[2].index == 2
    for cpu in made:
        cpu.close()
    machine.emulator.max_cpus = 1
    cpu = machine.emulator.create_cpu()
    with pytest.raises(OSError, match="no more than 1"):
        machine.emulator.create_cpu()
    cpu.close()


def test_kick_while_running(machine: Machine) -> None:
    cpu, space = machine.program(COUNT, rdi=DATA)
    for _ in range(100):
        thread = Thread(cpu.run)
        assert counts(space)
        cpu.kick()
        assert thread.end() is INTERRUPTED
        assert cpu.regs[RAX] - space.word(DATA) in (0, 1)
        assert CODE <= cpu.regs[RIP] < CODE + 8
    assert cpu.regs[RDI] == DATA


def test_kick_is_never_lost(machine: Machine) -> None:
    """At any moment: before the run, on the way in, inside, on the way out of a call that is served in place."""
    cpu, _ = machine.program("1: mov $39, %eax; syscall; dec %ebx; jnz 1b; jmp .")
    runs = 1500
    kicks = threading.Semaphore(0)
    served = 0

    def serve() -> bool:
        nonlocal served
        served += 1
        return True

    def kicker() -> None:
        for n in range(runs):
            kicks.acquire()
            for _ in range(n % 97 * 7):
                pass
            cpu.kick()

    cpu.serve = serve
    thread = Thread(kicker)
    for n in range(runs):
        start(cpu, rbx=n % 5 + 1)
        kicks.release()
        assert cpu.run() is INTERRUPTED
    thread.end()
    assert served > 0


def test_kick_while_waiting(machine: Machine) -> None:
    busy, space = machine.program(COUNT, rdi=DATA)
    waiting, _ = machine.program("mov $1, %eax; syscall")
    blocked = threading.Lock()
    blocked.acquire()
    entered = threading.Event()

    def serve() -> bool:
        entered.set()
        return blocked.acquire()

    # A call that takes long is served in place: its CPU keeps the turn.
    holder, _ = machine.program("syscall; jmp .")
    holder.serve = serve
    first = Thread(holder.run)
    assert entered.wait(30)
    second = Thread(waiting.run)
    until(lambda: waiting._waiting)
    waiting.kick()
    assert second.end() is INTERRUPTED
    assert waiting.save()[RIP] == CODE
    holder.kick()
    blocked.release()
    assert first.end() is INTERRUPTED
    assert waiting.run() is SYSCALL
    third = Thread(busy.run)
    assert counts(space)
    busy.kick()
    assert third.end() is INTERRUPTED


def share(machine: Machine, cpus: list[tuple[EmulatorCpu, Space]], seconds: float) -> tuple[list[float], list[int]]:
    """The engine's time that CPUs which count get side by side, and what they get done in it."""

    def standing() -> list[tuple[float, int]]:
        turns = machine.emulator._engine.turns
        with machine.emulator.exclusive(), turns._lock:
            assert turns._owner is not None
            turns._account(turns._owner)
            return [(cpu._used, space.word(DATA)) for cpu, space in cpus]

    threads = [Thread(cpu.run) for cpu, _ in cpus]
    for _, space in cpus:
        assert counts(space)
    before = standing()
    time.sleep(seconds)
    after = standing()
    for cpu, _ in cpus:
        cpu.kick()
    assert all(thread.end() is INTERRUPTED for thread in threads)
    change = list(zip(before, after, strict=True))
    return [b[0] - a[0] for a, b in change], [b[1] - a[1] for a, b in change]


@pytest.mark.parametrize("number", [2, 3, 5])
def test_cpus_that_compute_share_evenly(machine: Machine, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is ahead by more than a slice and what the host, which may be busy, let turns last longer."""
    longest = 0.0
    account = Turns._account

    def note(self: Turns, holder: Contender) -> None:
        nonlocal longest
        before = holder._used
        account(self, holder)
        longest = max(longest, holder._used - before)

    monkeypatch.setattr(Turns, "_account", note)
    cpus = [machine.program(COUNT, rdi=DATA) for _ in range(number)]
    used, done = share(machine, cpus, 0.6)
    assert max(used) - min(used) < 0.005 + 2 * longest, (used, longest)
    assert min(done) > 0
    assert sum(used) == pytest.approx(0.6, rel=0.2)


def test_one_cpu_is_not_interrupted(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    stops = []
    monkeypatch.setattr(machine.emulator._engine, "stop", lambda: stops.append(1))
    cpu, _ = machine.program("mov $50000000, %ecx; 1: dec %ecx; jnz 1b; syscall")
    assert cpu.run() is SYSCALL
    assert not stops


def test_faults_do_not_wait_for_a_slice(machine: Machine) -> None:
    """A CPU that comes back from an exit gets its turn before another one's slice is over."""
    busy, space = machine.program(COUNT, rdi=DATA)
    cpu, _ = machine.program("1: mov $1, %eax; syscall; jmp 1b")
    thread = Thread(busy.run)
    assert counts(space)
    begun = time.monotonic()
    for _ in range(100):
        assert cpu.run() is SYSCALL
    took = time.monotonic() - begun
    busy.kick()
    assert thread.end() is INTERRUPTED
    assert took < 100 * 0.0025, f"{took / 100 * 1e6:.0f} us a call beside a CPU that computes"


def test_atomic_increments(machine: Machine) -> None:
    """Guest threads with LOCK, and without: each is between two instructions when another one's turn comes."""
    each = 400_000
    space = machine.space("1: lock incq (%rdi); incq 8(%rdi); dec %ecx; jnz 1b; syscall")
    cpus = [machine.cpu(space, rdi=DATA, rcx=each) for _ in range(4)]
    threads = [Thread(cpu.run) for cpu in cpus]
    assert all(thread.end() is SYSCALL for thread in threads)
    assert space.word(DATA) == 4 * each


def test_host_atomics_beside_the_guest(machine: Machine) -> None:
    """A read-modify-write of the host's in exclusive() is atomic for the guest."""
    from vmm.memory.atomics import Atomics

    each, ours = 2_000_000, 3000
    space = machine.space("1: lock incl (%rdi); dec %ecx; jnz 1b; syscall")
    cpus = [machine.cpu(space, rdi=DATA, rcx=each) for _ in range(2)]
    threads = [Thread(cpu.run) for cpu in cpus]
    atomics, address = Atomics(machine.ram), space.frames[DATA]
    for _ in range(ours):
        with machine.emulator.exclusive():
            atomics.fetch_add_u32(address, 1)
    assert all(thread.end() is SYSCALL for thread in threads)
    assert space.word(DATA) == 2 * each + ours


def test_exclusive_holds_the_guest(machine: Machine) -> None:
    cpu, space = machine.program(COUNT, rdi=DATA)
    thread = Thread(cpu.run)
    assert counts(space)
    for _ in range(50):
        with machine.emulator.exclusive(), machine.emulator.exclusive():
            held = space.word(DATA)
            for _ in range(2000):
                pass
            assert space.word(DATA) == held
        assert counts(space)
    cpu.kick()
    assert thread.end() is INTERRUPTED


def test_a_program_that_stays_where_it_is(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Being stopped often is no error; stopping for no reason is."""
    cpu, _ = machine.program(SPIN)
    thread = Thread(cpu.run)
    until(lambda: machine.emulator._engine.running is cpu)
    for _ in range(2500):
        with machine.emulator.exclusive():
            pass
    cpu.kick()
    assert thread.end() is INTERRUPTED
    monkeypatch.setattr(machine.emulator._engine, "execute", lambda _cpu: None)
    found = cpu.run()
    assert isinstance(found, InternalError)
    assert f"rip {CODE:016x}" in found.dump


def revocable(machine: Machine) -> tuple[EmulatorCpu, Space]:
    return machine.program("1: incq (%rdi); incq (%rsi); jmp 1b", rdi=DATA, rsi=DATA + 0x1000)


@pytest.mark.parametrize("how", ["revoke", "revoke_all"])
def test_revoke_under_a_running_cpu(machine: Machine, how: str) -> None:
    """When it returns, no access through the old entry comes any more."""
    cpu, space = revocable(machine)
    frame = space.map(DATA + 0x1000, READ_WRITE)
    emulator = machine.emulator

    def revoke() -> None:
        emulator.revoke(frame, 0x1000) if how == "revoke" else emulator.revoke_all()

    for n in range(30):
        thread = Thread(cpu.run)
        assert counts(space, DATA + 0x1000)
        gone = n % 2 == 0
        if gone:
            space.table.clear(DATA + 0x1000, DATA + 0x2000)
        else:
            space.table.protect(DATA + 0x1000, DATA + 0x2000, 1 | 1 << 63, True)
        revoke()
        held = space.word(DATA + 0x1000)
        found = thread.end()
        assert isinstance(found, PageFault)
        # INC reads first.
        wanted = PF_USER if gone else PF_USER | PF_WRITE | PF_PRESENT
        assert (found.address, found.error) == (DATA + 0x1000, wanted)
        assert space.word(DATA + 0x1000) == held
        if gone:
            space.table.map(DATA + 0x1000, frame, 1, READ_WRITE)
        else:
            space.table.protect(DATA + 0x1000, DATA + 0x2000, READ_WRITE, True)


def test_revoke_while_served_in_place(machine: Machine) -> None:
    """By the thread that serves, and by another one while that one serves."""
    cpu, space = machine.program("1: mov (%rdi), %rax; syscall; jmp 1b", rdi=DATA + 0x1000)
    frames = [space.map(DATA + 0x1000, READ_WRITE), machine.frames.allocate()]
    for n, frame in enumerate(frames):
        machine.ram.words[frame >> 3] = 100 + n
    seen: list[int] = []

    def change() -> None:
        space.table.clear(DATA + 0x1000, DATA + 0x2000)
        space.table.map(DATA + 0x1000, frames[len(seen) % 2], 1, READ_WRITE)
        if len(seen) % 3 == 0:
            with machine.emulator.exclusive():
                machine.emulator.revoke_all()
        else:
            machine.emulator.revoke(frames[0], 0x1000)

    def serve() -> bool:
        seen.append(cpu.regs[RAX])
        if len(seen) % 4 < 2:
            change()
        else:
            Thread(change).end()
        return len(seen) < 40

    cpu.serve = serve
    assert cpu.run() is SYSCALL
    assert seen == [100 + n % 2 for n in range(40)]


def test_two_threads_that_revoke(machine: Machine) -> None:
    """Exclusive sections of several threads beside two CPUs that run: all of them get on."""
    cpus = [machine.program(COUNT, rdi=DATA) for _ in range(2)]
    threads = [Thread(cpu.run) for cpu, _ in cpus]

    def work() -> None:
        for _ in range(300):
            machine.emulator.revoke(0, 0x1000)

    for worker in [Thread(work) for _ in range(3)]:
        worker.end()
    assert all(counts(space) for _, space in cpus)
    for cpu, _ in cpus:
        cpu.kick()
    assert all(thread.end() is INTERRUPTED for thread in threads)


def test_forget_code(machine: Machine) -> None:
    cpu, space = machine.program("mov $1, %eax; syscall; jmp 0x400000")
    assert cpu.run() is SYSCALL
    for n in range(2, 20):
        space.put(CODE + 1, bytes((n,)))
        machine.emulator.forget_code(space.frames[CODE], 0x1000)
        assert cpu.run() is SYSCALL
        assert cpu.regs[RAX] == n

    def serve() -> bool:
        value: int = cpu.regs[RAX]
        space.put(CODE + 1, bytes((value + 1,)))
        machine.emulator.forget_code(space.frames[CODE] & -0x20_0000, 0x20_0000)
        return value < 60

    cpu.serve = serve
    assert cpu.run() is SYSCALL
    assert cpu.regs[RAX] == 60


def test_forget_code_under_a_running_cpu(machine: Machine) -> None:
    cpu, space = machine.program("1: movq $0, (%rdi); jmp 1b", rdi=DATA)
    thread = Thread(cpu.run)
    for n in range(1, 100):
        space.put(CODE + 3, bytes((n,)))
        machine.emulator.forget_code(space.frames[CODE], 7)
        until(lambda n=n: space.word(DATA) == n)
    cpu.kick()
    assert thread.end() is INTERRUPTED


def test_code_that_changes_itself(machine: Machine) -> None:
    """In place, and through another mapping of the same frame, from another CPU as well."""
    own = "mov $20, %ecx; 1: mov $0, %eax; add %rax, %rbx; incb 1b+1(%rip); dec %ecx; jnz 1b; syscall"
    cpu, space = machine.program(own)
    assert cpu.run() is SYSCALL
    assert cpu.save()[RBX] == sum(range(20))
    alias = CODE + 0x10_0000
    cpu, space = machine.program(own.replace("1b+1(%rip)", "(%rdi)"), rdi=alias + 6)
    space.map(alias, READ_WRITE, space.frames[CODE])
    assert cpu.run() is SYSCALL
    assert cpu.save()[RBX] == sum(range(20))
    # Several places are changed before any is run again; that not in the order of the changes.
    source = (
        "1: incb (%rdi); incb 0x100(%rdi); incb 0x200(%rdi);"
        "call 0x400300; call 0x400200; call 0x400100; syscall; jmp 1b"
    )
    cpu, space = machine.program(source, rdi=alias + 0x101)
    space.map(alias, READ_WRITE, space.frames[CODE])
    for at in (0x100, 0x200, 0x300):
        space.put(CODE + at, assemble("mov $0, %al; add %rax, %rbx; ret", CODE + at))
    for n in range(1, 10):
        assert cpu.run() is SYSCALL
        assert cpu.save()[RBX] == sum(3 * k for k in range(1, n + 1))
        cpu.regs[RAX] = 0
    writer, other = machine.program("incb (%rdi); syscall; jmp 0x400000", rdi=DATA + 1)
    reader, target = machine.program("mov $0, %eax; syscall; jmp 0x400000")
    other.table.clear(DATA, DATA + 0x1000)
    other.map(DATA, READ_WRITE, target.frames[CODE])
    for n in range(10):
        assert reader.run() is SYSCALL
        assert reader.regs[RAX] == n
        assert writer.run() is SYSCALL


def test_several_machines_at_once() -> None:
    """Engines share nothing: each runs on a thread of its own."""

    def life(seed: int) -> int:
        with Machine(32 << 20) as machine:
            cpu, space = machine.program("1: add %rbx, %rax; mov %rax, (%rdi); dec %ecx; jnz 1b; syscall", rdi=DATA)
            total = 0
            for n in range(40):
                start(cpu, rdi=DATA, rbx=seed, rcx=20000 + n)
                assert cpu.run() is SYSCALL
                assert space.word(DATA) == seed * (20000 + n)
                total += cpu.regs[RAX]
            return total

    threads = [Thread(lambda seed=seed: life(seed)) for seed in range(1, 5)]  # type: ignore[misc]
    each = sum(20000 + n for n in range(40))
    assert [thread.end() for thread in threads] == [seed * each for seed in range(1, 5)]


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


def mappings() -> int:
    with open("/proc/self/maps") as file:
        return sum(1 for _ in file)


def test_closing_gives_back() -> None:
    def life() -> None:
        with Machine(16 << 20) as machine:
            for _ in range(8):
                cpu, _ = machine.program("mov $3, %ecx; 1: dec %ecx; jnz 1b; syscall")
                assert cpu.run() is SYSCALL
        machine.emulator.close()

    for _ in range(3):
        life()
    before, maps = resident(), mappings()
    for _ in range(30):
        life()
    assert resident() - before < 30 * (256 << 10)
    assert mappings() - maps < 10


def test_kick_after_close(machine: Machine) -> None:
    cpu = machine.emulator.create_cpu()
    cpu.close()
    cpu.kick()


def test_the_program_sees_no_trap_flag(machine: Machine) -> None:
    """Code that runs into a page that is not there is gone through by single steps; the fault is where it belongs."""
    body = assemble("mov $5, %ebx; mov %bl, 0x600000; pushfq; pop %rcx; .byte 0x48, 0xb8, 1, 2, 3")
    space = machine.space()
    begin = CODE + 0x1000 - len(body)
    space.put(begin, body)
    cpu = machine.cpu(space, rip=begin)
    found = cpu.run()
    assert isinstance(found, PageFault)
    assert (found.address, found.error) == (CODE + 0x1000, 0x14)
    assert (cpu.regs[RIP], cpu.regs[RBX], space.get(DATA, 1)) == (CODE + 0x1000 - 5, 5, b"\5")
    assert cpu.save()[REGISTERS.index("rflags")] == FIXED_RFLAGS
    assert cpu.save()[RCX] & FIXED_RFLAGS
    space.map(CODE + 0x1000, READ_EXECUTE)
    space.put(CODE + 0x1000, assemble(".byte 4, 5, 6, 7, 8; syscall"))
    assert cpu.run() is SYSCALL
    assert cpu.regs[RAX] == 0x0807060504030201
    # The whole instruction is in the page that is not there.
    start(cpu, rip=CODE + 0x800)
    space.put(CODE + 0x800, b"\x90" * 0x800)
    machine.emulator.forget_code(space.frames[CODE], 0x1000)
    space.table.clear(CODE + 0x1000, CODE + 0x2000)
    machine.emulator.revoke(space.frames[CODE + 0x1000], 0x1000)
    found = cpu.run()
    assert isinstance(found, PageFault)
    assert (found.address, found.error, cpu.regs[RIP]) == (CODE + 0x1000, 0x14, CODE + 0x1000)


def test_fault_in_the_middle_of_steps(machine: Machine) -> None:
    body = assemble("mov (%rsi), %rax; syscall; nop")
    space = machine.space()
    begin = CODE + 0x1000 - len(body)
    space.put(begin, body)
    cpu = machine.cpu(space, rip=begin, rsi=0x12345000)
    found = cpu.run()
    assert isinstance(found, PageFault)
    assert (found.address, found.error, cpu.regs[RIP]) == (0x12345000, 4, begin)
    space.map(0x12345000, READ_WRITE)
    assert cpu.run() is SYSCALL
    assert cpu.save()[RIP] == begin + 5
    found = cpu.run()
    assert isinstance(found, PageFault)
    assert (found.error, cpu.regs[RIP]) == (0x14, CODE + 0x1000)


def test_avx_in_a_program_with_its_own_trap_flag(machine: Machine) -> None:
    cpu, _ = machine.program("nop; vpxor %xmm0, %xmm1, %xmm2; nop")
    state = cpu.save()
    state[REGISTERS.index("rflags")] |= 1 << 8
    cpu.load(state)
    found = cpu.run()
    assert isinstance(found, CpuException)
    assert (found.vector, cpu.regs[RIP]) == (1, CODE + 1)
    found = cpu.run()
    assert isinstance(found, CpuException)
    assert (found.vector, cpu.regs[RIP]) == (6, CODE + 1)
    assert cpu.regs[REGISTERS.index("rflags")] & 1 << 8
    assert ALL
