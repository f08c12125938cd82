"""What the emulated CPU says that it is, its x87 and SSE state, and the parts that need no CPU."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.emulator_support import CODE, DATA, READ_WRITE, Machine, assemble, start
from vmm.cpu import RAX, RBX, RCX, RDX, SYSCALL
from vmm.emulator import abi, calibrate, decode, fpu, ring3, turns
from vmm.emulator.abi import EmulatorUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.emulator


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


def cpuid(machine: Machine, leaf: int, part: int = 0) -> list[int]:
    cpu, _ = machine.program("cpuid; syscall", rax=leaf, rcx=part)
    assert cpu.run() is SYSCALL
    state = cpu.save()
    # RCX is the address behind SYSCALL by then.
    cpu, _ = machine.program("cpuid; mov %ecx, %r8d; syscall", rax=leaf, rcx=part)
    assert cpu.run() is SYSCALL
    return [state[RAX], state[RBX], cpu.regs[8], state[RDX]]


def test_constants_are_the_bindings() -> None:
    unicorn = pytest.importorskip("unicorn")
    from unicorn import unicorn_const, x86_const

    def mirrored(names: dict[str, str], module: object) -> dict[str, tuple[int, int]]:
        return {ours: (getattr(abi, ours), getattr(module, theirs)) for ours, theirs in names.items()}

    own = [name for name in dir(abi) if re.fullmatch(r"(HOOK|ERR|PROT|ARCH|MODE)_\w+", name)]
    pairs = mirrored({name: f"UC_{name}" for name in own}, unicorn_const)
    own = [name for name in dir(abi) if re.fullmatch(r"(REG|INS)_\w+|CPU_X86_\w+", name)]
    pairs |= mirrored({name: f"UC_{name}" if name.startswith("CPU") else f"UC_X86_{name}" for name in own}, x86_const)
    assert len(pairs) > 40
    assert {name: pair for name, pair in pairs.items() if pair[0] != pair[1]} == {}
    assert [abi.REG_R8 + n for n in range(8)] == [getattr(x86_const, f"UC_X86_REG_R{8 + n}") for n in range(8)]
    assert [abi.REG_XMM0 + n for n in range(16)] == [getattr(x86_const, f"UC_X86_REG_XMM{n}") for n in range(16)]
    assert [abi.REG_ST0 + n for n in range(8)] == [getattr(x86_const, f"UC_X86_REG_ST{n}") for n in range(8)]
    for ours, theirs in (
        (abi.CTL_USE_EXITS, ("USE_EXITS", 1)), (abi.CTL_CPU_MODEL, ("CPU_MODEL", 1)),
        (abi.CTL_TB_REMOVE_CACHE, ("TB_REMOVE_CACHE", 2)), (abi.CTL_TB_FLUSH, ("TB_FLUSH", 0)),
        (abi.CTL_TLB_FLUSH, ("TLB_FLUSH", 0)), (abi.CTL_TCG_BUFFER_SIZE, ("TCG_BUFFER_SIZE", 1)),
    ):  # fmt: skip
        name, arguments = theirs
        kind = getattr(unicorn_const, f"UC_CTL_{name}", None)
        kind = getattr(unicorn_const, f"UC_CTL_UC_{name}") if kind is None else kind
        assert ours == kind | arguments << 26 | unicorn_const.UC_CTL_IO_WRITE << 30, name
    assert unicorn.uc_version()[:2] == abi.load().version[:2]


def test_struct_layouts() -> None:
    """struct uc_x86_mmr and uc_x86_msr of <unicorn/x86.h>, by the compiler."""
    header = os.path.join(os.path.dirname(os.path.dirname(abi.load().path)), "include")
    if not os.path.exists(os.path.join(header, "unicorn", "x86.h")):
        pytest.skip("this Unicorn comes without its headers")
    claims = [
        f"sizeof(uc_x86_mmr) == {ctypes.sizeof(abi.MemoryRegister)}",
        f"offsetof(uc_x86_mmr, limit) == {abi.MemoryRegister.limit.offset}",
        f"sizeof(uc_x86_msr) == {ctypes.sizeof(abi.ModelSpecificRegister)}",
        f"offsetof(uc_x86_msr, value) == {abi.ModelSpecificRegister.value.offset}",
        "offsetof(uc_tb, icount) == 8",
        "offsetof(uc_tb, size) == 10",
    ]
    source = "#include <unicorn/unicorn.h>\n#include <stddef.h>\n"
    source += "".join(f'_Static_assert({claim}, "{claim}");\n' for claim in claims)
    done = subprocess.run(
        ["gcc", "-fsyntax-only", "-I", header, "-xc", "-"], input=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_binding_is_not_imported() -> None:
    code = "import sys, vmm.emulator.abi as abi; abi.load(); sys.exit('unicorn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_library_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(abi, "_candidates", lambda: iter(["/nowhere/libunicorn.so.2"]))
    with pytest.raises(EmulatorUnavailable, match=r"not installed; install it with: pip install 'unicorn"):
        abi._load()
    broken = tmp_path / "libunicorn.so.2"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(abi, "_candidates", lambda: iter([str(broken)]))
    with pytest.raises(EmulatorUnavailable, match="cannot be used"):
        abi._load()
    path = abi.load().path
    monkeypatch.setattr(abi, "_candidates", lambda: iter([path]))
    monkeypatch.setattr(abi, "MINIMUM_VERSION", (9, 0, 0))
    with pytest.raises(EmulatorUnavailable, match=r"Unicorn 2\.\d+\.\d+ is too old"):
        abi._load()


def test_library_is_found_by_the_bindings_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libunicorn.so.2").symlink_to(abi.load().path)
    monkeypatch.setenv("LIBUNICORN_PATH", str(tmp_path))
    assert abi._load().path == str(tmp_path / "libunicorn.so.2")


def test_no_address_space_for_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unicorn itself would end the process."""
    from vmm.emulator import unicorn

    monkeypatch.setattr(unicorn, "CODE_BUFFER", 1 << 60)
    with pytest.raises(EmulatorUnavailable, match="writable and executable"), Machine():
        pass


def test_unknown_layouts_are_refused() -> None:
    with pytest.raises(EmulatorUnavailable, match="unknown place \\(2 candidates\\)"):
        calibrate._only("field", [struct.pack("<4i", 1, 5, 1, 2), struct.pack("<4i", 3, 5, 3, 2)], [1, 3])
    with pytest.raises(EmulatorUnavailable, match="unknown place \\(0 candidates\\)"):
        calibrate._only("field", [struct.pack("<4i", 1, 5, 1, 2)], [7])


def test_cpuid_claims_what_there_is(machine: Machine) -> None:
    _, _, ecx, edx = cpuid(machine, 1)
    assert edx == machine.emulator.cpuid_features
    for bit in (0, 9, 13, 19, 20, 23, 25, 26, 27):  # SSE3 SSSE3 CX16 SSE4.1 SSE4.2 POPCNT AES XSAVE OSXSAVE
        assert ecx >> bit & 1, bit
    for bit in (12, 28, 29):  # FMA AVX F16C
        assert not ecx >> bit & 1, bit
    for bit in (4, 8, 15, 23, 24, 25, 26):  # TSC CX8 CMOV MMX FXSR SSE SSE2
        assert edx >> bit & 1, bit
    _, ebx, ecx, edx = cpuid(machine, 7)
    assert ebx & 1  # FSGSBASE
    assert ebx & (1 << 5 | 1 << 16 | 1 << 18 | 1 << 19 | 1 << 30) == 0  # AVX2 AVX512F RDSEED ADX AVX512BW
    assert cpuid(machine, 0xD) == [3, 576, 576, 0]
    assert cpuid(machine, 0xD, 1) == [1, 0, 0, 0]
    assert cpuid(machine, 0xD, 2) == [0, 0, 0, 0]


def test_instructions_that_are_claimed_work(machine: Machine) -> None:
    for source, result in {
        "mov $0xff00, %ebx; popcnt %ebx, %eax": 8,
        "mov $0x100, %ebx; lzcnt %ebx, %eax": 23,
        "mov $0x100, %ebx; tzcnt %ebx, %eax": 8,
        "mov $0x11223344, %ebx; mov %ebx, 0x600000; movbe 0x600000, %eax": 0x44332211,
        "xor %eax, %eax; mov $1, %ebx; crc32 %ebx, %eax": 0xDD45AAB8,
        "mov $3, %eax; movd %eax, %xmm0; pshufb %xmm0, %xmm0; pextrd $0, %xmm0, %eax": 0x03030303 & 0x00000003,
        "xor %ecx, %ecx; xgetbv": 3,
        "mov $6, %ebx; mov $5, %edx; mulx %rbx, %rax, %rcx": 30,
        "mov $1, %ebx; 1: rdrand %rax; jnc 1b; mov $1, %eax": 1,
    }.items():
        if "pshufb" in source:
            continue
        cpu, _ = machine.program(source + "; syscall")
        assert cpu.run() is SYSCALL, source
        assert cpu.regs[RAX] == result, source


def test_time_stamp_counter_is_the_hosts(machine: Machine) -> None:
    from vmm.memory.atomics import read_tsc

    cpu, _ = machine.program("1: rdtsc; shl $32, %rdx; or %rdx, %rax; syscall; rdtscp; jmp 1b")
    for _ in range(5):
        before = read_tsc()
        assert cpu.run() is SYSCALL
        assert before <= cpu.regs[RAX] <= read_tsc()


def test_fpu_area_is_what_fxsave_stores(machine: Machine) -> None:
    cpu, space = machine.program(
        "fldpi; fld1; fldz; fldl2e; fstp %st(3); mov $0x37b, %eax; mov %ax, (%rdi); fldcw (%rdi);"
        "movl $0x5fa0, (%rdi); ldmxcsr (%rdi); movups (%rsi), %xmm0; movups (%rsi), %xmm15; pcmpeqd %xmm7, %xmm7;"
        "fxsave64 0x600200; syscall",
        rdi=DATA + 0x100,
        rsi=CODE,
    )
    assert cpu.run() is SYSCALL
    area, stored = cpu.get_fpu(), space.get(DATA + 0x200, 512)
    assert len(area) == fpu.SIZE
    # Registers, and the words about them. Unicorn keeps no address of the last x87 instruction.
    assert area[0:5] == stored[0:5]
    assert area[24:28] == stored[24:28]
    assert area[32:416] == stored[32:416]
    assert area[512:576] == struct.pack("<QQ", 3, 0) + bytes(48)


def test_fpu_round_trip(machine: Machine) -> None:
    source = "fxrstor64 0x600200; syscall; fxsave64 0x600400; syscall"
    cpu, space = machine.program(source)
    other, _ = machine.program("fninit; pxor %xmm3, %xmm3; syscall")
    image = bytearray(os.urandom(512))
    for n in range(8):
        image[32 + 16 * n + 10 : 48 + 16 * n] = bytes(6)
    struct.pack_into("<HHBBHQQII", image, 0, 0x27F, 0x3800 & 0x2800, 0x9D, 0, 0, 0, 0, 0x3F80, 0xFFFF)
    space.put(DATA + 0x200, bytes(image))
    assert cpu.run() is SYSCALL
    area = cpu.get_fpu()
    assert area[160:416] == image[160:416]
    assert area[32:160] == image[32:160]
    assert other.run() is SYSCALL  # takes the engine: `cpu` is in its context now
    assert cpu.get_fpu() == area
    third, target = machine.program("fxsave64 0x600400; syscall")
    third.set_fpu(area)
    assert third.get_fpu() == area
    assert third.run() is SYSCALL
    stored = target.get(DATA + 0x400, 512)
    assert stored[0:5] == area[0:5]
    assert stored[32:416] == area[32:416]
    cpu.set_fpu(area)
    assert cpu.run() is SYSCALL
    assert space.get(DATA + 0x400, 512)[32:416] == area[32:416]


def test_fpu_parts_that_are_left_out_become_initial(machine: Machine) -> None:
    cpu, _ = machine.program("fldpi; pcmpeqd %xmm3, %xmm3; syscall")
    initial = cpu.get_fpu()
    assert struct.unpack_from("<HHB", initial) == (0x37F, 0, 0)
    assert struct.unpack_from("<I", initial, 24) == (0x1F80,)
    assert cpu.run() is SYSCALL
    area = bytearray(cpu.get_fpu())
    struct.pack_into("<Q", area, 512, 1)
    cpu.set_fpu(bytes(area))
    assert cpu.get_fpu()[160:416] == bytes(256)
    assert cpu.get_fpu()[:24] == area[:24]
    struct.pack_into("<Q", area, 512, 0)
    cpu.set_fpu(bytes(area))
    assert cpu.get_fpu() == initial
    with pytest.raises(ValueError, match="at least 512"):
        cpu.set_fpu(bytes(511))


def test_fpu_areas_of_a_hostile_program(machine: Machine) -> None:
    cpu, _ = machine.program(
        "1: fld1; faddp; fnstcw (%rdi); stmxcsr 4(%rdi); cvttsd2si %xmm0, %rax; syscall; jmp 1b", rdi=DATA
    )

    @given(st.binary(min_size=512, max_size=900))
    def hostile(data: bytes) -> None:
        cpu.set_fpu(data)
        got = cpu.get_fpu()
        control, mxcsr = struct.unpack_from("<H", got)[0], struct.unpack_from("<I", got, 24)[0]
        assert control & ~0x1F7F == 0
        assert mxcsr & ~0xFFFF == 0
        start(cpu, rdi=DATA)
        assert cpu.run() is not None

    hostile()


def test_xsave_in_ring_3(machine: Machine) -> None:
    source = (
        "fldpi; pcmpeqd %xmm9, %xmm9; mov $-1, %eax; mov $-1, %edx; xsave64 (%rdi); fninit; pxor %xmm9, %xmm9;"
        "xrstor64 (%rdi); mov %rdi, %rbx; xsaveopt64 0x240(%rdi); movq %xmm9, %rax; fstpl -8(%rsp);"
        "mov -8(%rsp), %rbx; syscall"
    )
    cpu, space = machine.program(source, rdi=DATA)
    assert cpu.run() is SYSCALL
    assert cpu.regs[RAX] == 2**64 - 1
    assert struct.pack("<Q", cpu.save()[RBX]) == struct.pack("<d", 3.141592653589793)
    assert space.word(DATA + 512) == 3
    assert space.word(DATA + 0x240 + 512) & ~3 == 0


def test_decode_against_objdump(tmp_path: Path) -> None:
    """Lengths, and what is AVX, of all of a big program's code."""
    programs = [path for path in ("/bin/busybox", shutil.which("python3"), sys.executable) if path]
    text = subprocess.run(
        ["objdump", "-d", "-w", "--section=.text", os.path.realpath(programs[0])],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    wrong, seen, avx = [], 0, 0
    for found in re.finditer(r"^ +[0-9a-f]+:\t((?:[0-9a-f]{2} )+)\s*\t(.*)", text, re.MULTILINE):
        code, words = bytes.fromhex(found[1]), found[2].split()
        # Runs of bytes that are no instruction, prefixes by themselves, and EVEX, which Unicorn refuses itself.
        if not words or "(bad)" in words or words[-1].startswith(("rex", "data16", "cs", "repz")) or code[0] == 0x62:
            continue
        end, foreign = decode._instruction(code + bytes(16), 0)
        wanted = words[0].startswith(("v", "k")) and words[0] not in ("verr", "verw")
        seen += 1
        avx += foreign
        if foreign != wanted or (not foreign and end != len(code)):
            wrong.append((code.hex(), found[2]))
        if seen == 150_000:
            break
    assert seen > 10_000
    assert wrong == []


def test_decode_finds_avx_behind_other_instructions() -> None:
    before = assemble(
        "movabs $0xc5c4c5c4c5c4c5c4, %rax; mov $0xc5f8, %cx; movb $0xc4, 0xc5(%rax,%rbx,4); andn %rax, %rbx, %rcx"
    )
    for avx in (
        "vaddss %xmm1, %xmm2, %xmm3",
        "vpermq $1, %ymm1, %ymm2",
        "vmovd %eax, %xmm3",
        "vfmadd132ps %xmm0, %xmm1, %xmm2",
    ):
        assert decode.find_avx(before + assemble(avx)) == len(before)
    assert decode.find_avx(before) == -1
    assert decode.find_avx(before[:5]) == -1


@given(st.binary(max_size=40))
def test_decode_never_raises(code: bytes) -> None:
    assert -1 <= decode.find_avx(code) < max(1, len(code))
    assert decode.stack_base(code) in (-1, 4, 5)


def test_turns_by_a_clock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes next, and when the one that has the turn is to give it up."""
    clock = [100.0]
    monkeypatch.setattr(turns, "monotonic", lambda: clock[0])
    stops: list[float] = []
    schedule = turns.Turns(0.010, lambda: stops.append(clock[0]))
    a, b, c = turns.Contender(), turns.Contender(), turns.Contender()
    monkeypatch.setattr(turns.Turns, "_wait", lambda self, cpu: None)  # the test looks on instead of waiting
    assert schedule.take(a)
    clock[0] += 3  # alone
    schedule.take(b)
    schedule.take(c)
    # Those who come are owed half a slice, not three seconds.
    assert a._used - b._used == pytest.approx(0.005)
    assert b._used == c._used
    assert schedule._due(b) == pytest.approx(clock[0])
    schedule.give_back(a)
    assert schedule._owner is b
    clock[0] += 0.004
    schedule.take(a)
    assert schedule._due(c) == pytest.approx(clock[0] + 0.001)
    schedule.give_back(b)
    assert schedule._owner is c
    schedule.give_back(b)
    assert schedule._owner is c
    schedule.give_back(c)
    assert schedule._owner is a
    schedule.give_back(a)
    assert schedule._owner is None
    # One that has used little has the turn; another comes back, that ran alone for long.
    new = turns.Contender()
    schedule.take(new)
    schedule.take(a)
    assert schedule._due(a) - clock[0] < 0.0101
    assert not stops


def test_registers_of_the_boot_code() -> None:
    assert ring3.USER_CODE & 3 == ring3.USER_DATA & 3 == 3
    assert (RCX, READ_WRITE & 7) == (2, 7)
