"""Signal frames: byte for byte those of the host's kernel; back from them; and what a hostile one may do."""

from __future__ import annotations

import errno
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.errors import SysError
from devices.signals import fpstate, frame
from devices.signals.abi import (
    FP_XSTATE_MAGIC1,
    FPX_SW_BYTES,
    FRAME_SIZE,
    SA_ONSTACK,
    SA_RESTORER,
    SA_SIGINFO,
    SIGCONTEXT,
    SIGILL,
    SIGUSR1,
    SS_AUTODISARM,
    SS_DISABLE,
    STACK,
    SW_RESERVED,
    UCONTEXT,
)
from devices.signals.info import SigInfo
from devices.signals.queue import Action
from tests import harness
from tests.unit.devices.signals.support import (
    AVX_SIZE,
    DATA,
    HANDLER,
    RESTORER,
    STACK_TOP,
    U64,
    FakeAccelerator,
    World,
    cpu_of,
    memory_of,
    signals,
)
from vmm.cpu import FIXED_RFLAGS, RAX, RDI, RDX, RFLAGS, RIP, RSI, RSP
from vmm.layout import PAGE_SIZE

if TYPE_CHECKING:
    from devices.task.task import Task

HERE = Path(__file__).parent
ENTRY = struct.Struct("<14Q")
INFO = SigInfo(SIGUSR1, 0, bytes(range(36)))
ACTION = Action(HANDLER, SA_RESTORER | SA_SIGINFO, RESTORER)


class Dump:
    """What frame_oracle.c shows: the handler's registers, the stacks, the bytes from the frame on."""

    def __init__(self, raw: bytes) -> None:
        (
            self.rdi, self.rsi, self.rdx, self.rax, self.rsp, self.rflags, self.mxcsr, self.fcw,
            self.stack, self.size, self.altstack, self.altsize, self.handler, self.restorer,
        ) = ENTRY.unpack_from(raw)  # fmt: skip
        self.frame = raw[ENTRY.size :]
        _, _, _, context, self.mask = UCONTEXT.unpack_from(self.frame, 8)
        self.context = SIGCONTEXT.unpack(context)
        self.fp = self.context[-1]

    def state(self) -> list[int]:
        """The interrupted program's registers."""
        state = [0] * 18
        for register, value in zip(frame.ORDER, self.context, strict=False):
            state[register] = value
        return state

    def area(self) -> bytes:
        at = self.fp - self.rsp
        size = FPX_SW_BYTES.unpack_from(self.frame, at + SW_RESERVED)[3]
        area = bytearray(self.frame[at : at + size])
        area[SW_RESERVED : SW_RESERVED + FPX_SW_BYTES.size] = bytes(FPX_SW_BYTES.size)
        return bytes(area)

    def without_features(self) -> bytes:
        """The frame, with those state components blanked that pyvmm's CPUs never have (PKRU, AMX)."""
        out = bytearray(self.frame)
        at = self.fp - self.rsp + SW_RESERVED + 8
        (wanted,) = struct.unpack_from("<Q", out, at)
        struct.pack_into("<Q", out, at, wanted & 0xE7)
        return bytes(out)


@pytest.fixture(scope="module", params=["alt", "own"])
def dump(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dump:
    oracle = harness.compile_c(HERE / "frame_oracle.c", tmp_path_factory.mktemp("oracle") / "oracle")
    done = subprocess.run([oracle, request.param], capture_output=True, check=True)
    return Dump(done.stdout)


def task_at(dump: Dump) -> Task:
    task = World().task()
    memory_of(task).map(dump.stack, dump.size // PAGE_SIZE)
    task.altstack = (dump.altstack, dump.altsize, 0)
    task.pending.trap = (6, 0, 0)
    return task


def test_frame_is_the_hosts(dump: Dump) -> None:
    task = task_at(dump)
    flags = SA_SIGINFO | SA_RESTORER | (SA_ONSTACK if dump.stack == dump.altstack else 0)
    state = dump.state()
    info = SigInfo.fault(SIGILL, 2, state[RIP])
    frame.push(task, state, dump.area(), info, Action(dump.handler, flags, dump.restorer), dump.mask)
    assert [state[n] for n in (RDI, RSI, RDX, RAX, RSP, RIP)] == [
        dump.rdi, dump.rsi, dump.rdx, dump.rax, dump.rsp, dump.handler,
    ]  # fmt: skip
    assert state[RFLAGS] & 0xFFFF == dump.rflags & 0xFFFF
    length = dump.fp + len(dump.area()) + 4 - dump.rsp
    written = task.memory.read(dump.rsp, length)
    expected = dump.without_features()[:length]
    different = [n for n in range(length) if written[n] != expected[n]]
    assert not different
    assert len(dump.frame) - length < 64 + 128 + 24


def test_handlers_start_with_the_hosts_fpu_state(dump: Dump) -> None:
    area = fpstate.initial(AVX_SIZE)
    assert struct.unpack_from("<H", area, fpstate.FCW)[0] == dump.fcw
    assert struct.unpack_from("<I", area, fpstate.MXCSR)[0] == dump.mxcsr
    assert dump.area()[fpstate.FCW : fpstate.FCW + 2] != area[fpstate.FCW : fpstate.FCW + 2]


def test_the_hosts_frame_is_understood(dump: Dump, monkeypatch: pytest.MonkeyPatch) -> None:
    task = task_at(dump)
    task.memory.write(dump.rsp, dump.frame[: dump.stack + dump.size - dump.rsp])
    cpu_of(task).area = bytes(len(dump.area()))
    monkeypatch.setattr(FakeAccelerator, "fpu_size", len(dump.area()))
    state = [0] * 18
    state[RSP] = dump.rsp + 8
    saved = frame.read(task, state)
    expected = dump.state()
    expected[RFLAGS] &= frame.RESTORED_FLAGS
    assert saved.registers == expected
    assert (saved.mask, saved.fpstate, saved.selector) == (dump.mask, dump.fp, 0)
    assert STACK.unpack(saved.stack) == (dump.altstack, 0, dump.altsize)
    fpstate.restore_locked(task, saved.fpstate)
    now, then = cpu_of(task).area, dump.area()
    assert now[:SW_RESERVED] == then[:SW_RESERVED]
    assert now[fpstate.HEADER_END :] == then[fpstate.HEADER_END :]


REGISTERS = st.lists(st.integers(0, U64), min_size=18, max_size=18)


@given(REGISTERS, st.binary(min_size=AVX_SIZE - 576, max_size=AVX_SIZE - 576), st.integers(0, U64), st.integers(0, 7))
def test_round_trip(state: list[int], ymm: bytes, mask: int, present: int) -> None:
    task = World().task()
    state[RSP] = STACK_TOP - 0x2000 + state[RSP] % 0x1000
    area = bytearray(fpstate.initial(AVX_SIZE)[:576] + ymm)
    area[40:72] = ymm[:32]
    area[512] = present | 3
    before = list(state)
    frame.push(task, state, bytes(area), INFO, ACTION, mask)
    assert (state[RSP] + 8) % 16 == 0
    assert state[RSP] + FRAME_SIZE <= before[RSP] - 128
    assert task.memory.read_u64(state[RSP]) == RESTORER
    assert task.memory.read(state[RSI], 128) == INFO.pack()
    assert not state[RFLAGS] & (frame.TF | frame.DF | frame.RF)
    returning = list(state)
    returning[RSP] += 8  # RET
    saved = frame.read(task, returning)
    assert saved.mask == mask
    expected = list(before)
    expected[RFLAGS] = before[RFLAGS] & frame.RESTORED_FLAGS | state[RFLAGS] & ~frame.RESTORED_FLAGS
    assert saved.registers == expected
    assert saved.fpstate % 64 == 0
    fpstate.restore_locked(task, saved.fpstate)
    restored = bytearray(cpu_of(task).area)
    restored[SW_RESERVED:512] = bytes(48)  # Linux's marks, which mean nothing to a CPU
    assert restored == area


def test_without_restorer_there_is_no_frame() -> None:
    task = World().task()
    state = task.cpu.save()
    before = list(state)
    with pytest.raises(SysError):
        frame.push(task, state, task.cpu.get_fpu(), INFO, Action(HANDLER, SA_SIGINFO, RESTORER), 0)
    assert state == before


@pytest.mark.parametrize("rsp", [0, 8, 0x500, DATA + 64, DATA + 0x5000, 1 << 47, 0xFFFF_8000_0000_0000, U64])
def test_a_stack_that_is_none(rsp: int) -> None:
    task = World().task()
    state = task.cpu.save()
    state[RSP] = rsp
    before = list(state)
    with pytest.raises(SysError) as raised:
        frame.push(task, state, task.cpu.get_fpu(), INFO, ACTION, 0)
    assert raised.value.errno == errno.EFAULT
    assert state == before


# Alternate stacks


def on_altstack(flags: int = 0, size: int = 0x2000) -> Task:
    task = World().task()
    task.altstack = (DATA, size, flags)
    return task


def pushed(task: Task, rsp: int, flags: int = SA_ONSTACK) -> int:
    state = task.cpu.save()
    state[RSP] = rsp
    frame.push(task, state, task.cpu.get_fpu(), INFO, Action(HANDLER, flags | SA_RESTORER, RESTORER), 0)
    return state[RSP]


def test_handlers_move_to_the_alternate_stack() -> None:
    task = on_altstack()
    assert DATA < pushed(task, STACK_TOP - 0x1000) < DATA + 0x2000
    assert STACK_TOP - 0x3000 < pushed(task, STACK_TOP - 0x1000, 0) < STACK_TOP


def test_nested_handlers_stay_below_on_it() -> None:
    task = on_altstack(size=0x4000)
    first = pushed(task, STACK_TOP - 0x1000)
    assert first > pushed(task, first - 64) > DATA


def test_an_overflow_is_seen_on_entry_and_when_nested() -> None:
    with pytest.raises(SysError, match="overflow"):
        pushed(on_altstack(size=FRAME_SIZE), STACK_TOP - 0x1000)
    task = on_altstack(size=0x1000)
    second = pushed(task, pushed(task, STACK_TOP - 0x1000))
    with pytest.raises(SysError, match="overflow"):
        pushed(task, second)


def test_a_disarmed_stack_is_entered_from_its_top_again() -> None:
    task = on_altstack(SS_AUTODISARM)
    first = pushed(task, STACK_TOP - 0x1000)
    assert pushed(task, first) == first


def test_a_disabled_stack_is_not_used() -> None:
    task = World().task()
    assert task.altstack == (0, 0, SS_DISABLE)
    assert pushed(task, STACK_TOP - 0x1000) > STACK_TOP - 0x3000


def test_minimum_stack_is_enough_and_not_much_more() -> None:
    for fpu_size in (576, AVX_SIZE, 2688):
        for odd in range(0, 256, 8):
            task = World().task()
            cpu_of(task).area = fpstate.initial(fpu_size)
            task.altstack = (DATA + odd, frame.minimum_stack(fpu_size), 0)
            pushed(task, STACK_TOP - 0x1000)
        task.altstack = (DATA, frame.minimum_stack(fpu_size) - 160, 0)
        with pytest.raises(SysError):
            pushed(task, STACK_TOP - 0x1000)


# Hostile floating-point states


def with_state(edit: dict[int, bytes] | None = None, size: int = AVX_SIZE) -> Task:
    """A task with a framed state at DATA, changed at some offsets. Its CPU's registers are all ones."""
    task = World().task()
    area = bytearray(fpstate.initial(size))
    area[40:48] = b"x87 x87 "
    area[160:168] = b"sse sse "
    area[576:584] = b"avx avx "
    area[512] = 7
    framed = bytearray(fpstate.marked(bytes(area)))
    for offset, data in (edit or {}).items():
        framed[offset : offset + len(data)] = data
    task.memory.write(DATA, framed)
    cpu_of(task).area = b"\xff" * size
    return task


INITIAL = fpstate.initial(AVX_SIZE)


def test_no_state_is_the_initial_one() -> None:
    task = with_state()
    fpstate.restore_locked(task, 0)
    assert cpu_of(task).area == INITIAL


@pytest.mark.parametrize(
    "edit",
    [
        {24: b"\xff\xff\xff\xff"},  # MXCSR
        {512: b"\xff"},  # a component that the CPU has not
        {519: b"\x80"},
        {520: b"\1"},  # compacted format
        {528: b"\1"},
        {535: b"\1"},
    ],
)
def test_what_xrstor_refuses(edit: dict[int, bytes]) -> None:
    task = with_state(edit)
    with pytest.raises(SysError) as raised:
        fpstate.restore_locked(task, DATA)
    assert raised.value.errno == errno.EFAULT
    assert cpu_of(task).area == INITIAL


def test_what_xrstor_does_not_look_at() -> None:
    task = with_state({536: b"\xff" * 40})
    fpstate.restore_locked(task, DATA)
    assert cpu_of(task).area[160:168] == b"sse sse "
    assert not any(cpu_of(task).area[520:576])


@pytest.mark.parametrize("address", [DATA + 8, DATA + 32, 0x10, 1 << 47, U64 - 63, 0xFFFF_8000_0000_0000])
def test_a_state_in_no_place(address: int) -> None:
    task = with_state()
    task.memory.write(DATA + 32, task.memory.read(DATA, AVX_SIZE + 4))
    with pytest.raises(SysError):
        fpstate.restore_locked(task, address)
    assert cpu_of(task).area == INITIAL


@pytest.mark.parametrize("edit", [{SW_RESERVED: bytes(4)}, {AVX_SIZE: bytes(4)}])
def test_a_legacy_state_has_no_avx(edit: dict[int, bytes]) -> None:
    task = with_state(edit)
    fpstate.restore_locked(task, DATA)
    area = cpu_of(task).area
    assert area[40:48] == b"x87 x87 "
    assert area[160:168] == b"sse sse "
    assert area[512:] == INITIAL[512:]


def test_a_legacy_state_at_the_end_of_memory() -> None:
    task = with_state()
    end = DATA + 4 * PAGE_SIZE - 512
    legacy = bytearray(task.memory.read(DATA, 512))
    task.memory.write(end, bytes(legacy))
    with pytest.raises(SysError):  # it claims to be longer
        fpstate.restore_locked(task, end)
    legacy[SW_RESERVED : SW_RESERVED + 4] = bytes(4)
    task.memory.write(end, bytes(legacy))
    fpstate.restore_locked(task, end)
    assert cpu_of(task).area[160:168] == b"sse sse "


@pytest.mark.parametrize("present", range(8))
@pytest.mark.parametrize("wanted", [0, 1, 2, 4, 7, U64])
def test_components_left_out_are_initial(present: int, wanted: int) -> None:
    mxcsr = struct.pack("<I", 0x3F80)
    marks = FPX_SW_BYTES.pack(FP_XSTATE_MAGIC1, AVX_SIZE + 4, wanted, AVX_SIZE)
    task = with_state({512: bytes([present]), SW_RESERVED: marks, 24: mxcsr})
    fpstate.restore_locked(task, DATA)
    area = cpu_of(task).area
    loaded = present & wanted
    assert area[40:48] == (b"x87 x87 " if loaded & 1 else bytes(8))
    assert area[160:168] == (b"sse sse " if loaded & 2 else bytes(8))
    assert area[512] == 3 | loaded & 4
    assert area[24:28] == (mxcsr if wanted & 6 else INITIAL[24:28])  # XRSTOR loads MXCSR even then
    assert area[0:2] == INITIAL[0:2]


@given(st.binary(min_size=AVX_SIZE + 4, max_size=AVX_SIZE + 4), st.booleans(), st.booleans())
def test_any_bytes_are_a_state_or_refused(data: bytes, magic1: bool, magic2: bool) -> None:
    task = with_state()
    framed = bytearray(data)
    if magic1:
        framed[SW_RESERVED : SW_RESERVED + 4] = FP_XSTATE_MAGIC1.to_bytes(4, "little")
    if magic2:
        framed[AVX_SIZE:] = fpstate.MAGIC2
    task.memory.write(DATA, framed)
    try:
        fpstate.restore_locked(task, DATA)
    except SysError:
        assert cpu_of(task).area == INITIAL
    area = cpu_of(task).area
    assert struct.unpack_from("<I", area, 24)[0] & ~fpstate.MXCSR_DEFINED == 0
    assert struct.unpack_from("<Q", area, 512)[0] & ~7 == 0
    assert not any(area[520:576])


# Hostile contexts


def rewritten(**fields: int) -> tuple[Task, list[int]]:
    """A task in rt_sigreturn from a frame with some fields changed."""
    task = World().task()
    state = task.cpu.save()
    frame.push(task, state, task.cpu.get_fpu(), INFO, ACTION, signals(SIGUSR1))
    uc_flags, link, stack, context, mask = UCONTEXT.unpack(task.memory.read(state[RDX], UCONTEXT.size))
    values = list(SIGCONTEXT.unpack(context))
    names = [*frame.ORDER, "cs", "gs", "fs", "ss", "err", "trapno", "oldmask", "cr2", "fpstate"]
    for name, value in fields.items():
        if name == "uc_flags":
            uc_flags = value
        else:
            values[names.index({"rip": RIP, "rflags": RFLAGS}.get(name, name))] = value
    task.memory.write(state[RDX], UCONTEXT.pack(uc_flags, link, stack, SIGCONTEXT.pack(*values), mask))
    state[RSP] += 8
    return task, state


def test_flags_that_a_frame_cannot_set() -> None:
    task, state = rewritten(rflags=U64)
    state[RFLAGS] = FIXED_RFLAGS
    assert frame.read(task, state).registers[RFLAGS] == FIXED_RFLAGS | 0x5_0DD5
    task, state = rewritten(rflags=0)
    state[RFLAGS] = FIXED_RFLAGS | 1 << 21
    assert frame.read(task, state).registers[RFLAGS] == FIXED_RFLAGS | 1 << 21


@pytest.mark.parametrize(
    ("fields", "selector"),
    [
        ({"cs": 0x10}, 0x13),
        ({"cs": 0}, 3),
        ({"cs": 0x30}, 0),
        ({"cs": 0x23}, 0x23),
        ({"ss": 0x1234}, 0x1237),
        ({"ss": 0x28}, 0),
        ({"ss": 0, "uc_flags": 3}, 0),
        ({"gs": 0xFFFF, "fs": 0xFFFF}, 0),
    ],
)
def test_selectors(fields: dict[str, int], selector: int) -> None:
    task, state = rewritten(**fields)
    assert frame.read(task, state).selector == selector
